"""Media as they are found in the wild: each ends in a SampleError that names the file, and never in a hang."""

import io
import os
import struct
import wave
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from erniekit.data.chat.conversation import SampleError
from erniekit.data.media.frames import load_frames, video_info
from erniekit.data.media.images import image_size, open_image
from erniekit.data.media.patches import ImageSpec, image_grid
from tests.unit.data.helpers import encoded, noise
from tests.unit.data.videos import video

# They take milliseconds, and must not take for ever.
pytestmark = pytest.mark.timeout(600)

Make = Callable[[Path], None]
HTML = b"<!DOCTYPE html>\n<html><body>403 Forbidden</body></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"


def content(data: bytes | Callable[[], bytes]) -> Make:
    def make(path: Path) -> None:
        path.write_bytes(data() if callable(data) else data)

    return make


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has that size; its pixels are of another."""
    small = encoded(Image.new("L", (8, 8)))
    chunk = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
    return small[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + small[33:]


def png_without_pixels() -> bytes:
    whole = encoded(noise(32, 32))
    return whole[: whole.index(b"IDAT") - 4] + whole[whole.index(b"IEND") - 4 :]


def png_with_damaged_pixels() -> bytes:
    whole = bytearray(encoded(noise(64, 64)))
    start = whole.index(b"IDAT") + 4
    whole[start : start + 200] = bytes(200)
    return bytes(whole)


def gif_header(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0;"


def to_itself(path: Path) -> None:
    path.symlink_to(path)


def below_a_file(path: Path) -> None:
    path.parent.parent.mkdir(exist_ok=True)
    path.parent.write_bytes(b"")


IMAGES: list[tuple[str, Make, str, str]] = [
    ("absent", lambda path: None, "missing image", "no such image"),
    ("dangling link", lambda path: path.symlink_to("none"), "missing image", "no such image"),
    ("link to itself", to_itself, "bad image", "cannot open the image"),
    ("directory", lambda path: path.mkdir(), "bad image", "it is a directory"),
    ("pipe", lambda path: os.mkfifo(path), "bad image", "it is a pipe or a device"),
    ("endless device", lambda path: path.symlink_to("/dev/zero"), "bad image", "it is a pipe or a device"),
    ("empty", content(b""), "bad image", r"not an image that can be read: .* \(it is empty\)"),
    ("one byte", content(b"\xff"), "bad image", "not an image that can be read"),
    ("text", content(b"no image"), "bad image", "not an image that can be read"),
    ("web page", content(HTML), "bad image", r"\(it is a web page\)"),
    ("Git LFS pointer", content(LFS), "bad image", "git lfs pull"),
    ("SVG", content(b'<?xml version="1.0"?><svg xmlns="x"/>'), "bad image", "SVG drawing"),
    ("HEIC", content(b"\0\0\0\x18ftypheic" + bytes(40)), "bad image", "it is HEIC: save it as JPEG"),
    ("PDF", content(b"%PDF-1.7\n"), "bad image", "not an image that can be read"),
    ("EPS", content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "bad image", "not an image"),
    ("video", content(lambda: video(3)), "bad image", "not an image that can be read"),
    ("cut JPEG", content(encoded(noise(200, 300), "JPEG")[:-900]), "bad image", "damaged .*truncated"),
    ("cut JPEG header", content(encoded(noise(20, 30), "JPEG")[:25]), "bad image", "image"),
    ("cut PNG", content(encoded(noise(64, 64))[:-200]), "bad image", "damaged image"),
    ("cut WebP", content(encoded(noise(64, 64), "WEBP")[:-100]), "bad image", "image"),
    ("cut GIF", content(encoded(noise(64, 64), "GIF")[:-300]), "bad image", "image"),
    ("cut TIFF", content(encoded(noise(64, 64), "TIFF")[:500]), "bad image", "image"),
    ("PNG without pixels", content(png_without_pixels()), "bad image", "image"),
    ("PNG with zeros for pixels", content(png_with_damaged_pixels()), "bad image", "damaged image"),
    ("bomb", content(png_header(30_000, 30_000)), "bad image", "more than 89,478,485 pixels"),
    ("absurd size", content(png_header(2**31 - 1, 2**31 - 1)), "bad image", "image"),
    ("PNG of no width", content(png_header(0, 8)), "bad image", "not an image|cannot open"),
    ("GIF of no size", content(gif_header(0, 0)), "bad image", "image"),
    ("TIFF of floats", content(encoded(Image.new("F", (4, 4)), "TIFF")), "bad image", "pixels of type F"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "reason", "message"), [case[1:] for case in IMAGES], ids=[c[0] for c in IMAGES]
)
def test_a_malformed_image_is_a_sample_error(tmp_path: Path, make: Make, reason: str, message: str) -> None:
    path = tmp_path / "picture.jpg"
    make(path)
    with pytest.raises(SampleError, match=message) as caught:
        image_size(str(path), "f:7")
        open_image(str(path), "f:7")
    assert (caught.value.reason, caught.value.sample_id) == (reason, "f:7")
    assert str(path) in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nul\0.png", "bad image"),
        ("x" * 5000 + ".png", "bad image"),
        ("\udcff.png", "missing image"),
        ("/dev/null/a.png", "missing image"),
        (b"", "bad image"),
        (HTML, "bad image"),
    ],
)
def test_names_and_bytes_that_cannot_be(source: str | bytes, reason: str) -> None:
    for read in (image_size, open_image):
        with pytest.raises(SampleError) as caught:
            read(source, "f:7")
        assert caught.value.reason == reason
        assert len(str(caught.value)) < 600


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(8, 8)))
    path.chmod(0)
    with pytest.raises(SampleError, match=r"cannot open the image .*a\.png: Permission denied"):
        image_size(str(path), "f:7")


def test_a_refused_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(8, 8)))
    monkeypatch.setattr("PIL.Image.open", refuse)
    monkeypatch.setattr("av.open", refuse)
    for read in (image_size, video_info):
        with pytest.raises(SampleError, match=r"a\.png.*: Permission denied"):
            read(str(path), "f:7")


@pytest.mark.parametrize(("height", "width"), [(1, 10_000), (10_000, 1)])
def test_an_image_far_too_long_is_refused_by_its_header(height: int, width: int) -> None:
    spec = ImageSpec(3136, 1003520, 14, 2, (0.5,) * 3, (0.5,) * 3)
    size = image_size(encoded(Image.new("L", (width, height))), "f:7")
    with pytest.raises(ValueError, match=f"one side is more than 200 times the other \\({width}x{height}"):
        image_grid(*size, spec)


def sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setparams((1, 2, 8000, 0, "NONE", ""))
        output.writeframes(bytes(2000))
    return file.getvalue()


def song_with_cover() -> bytes:
    """Sound in MP4 with an image beside it, which FFmpeg shows as a video of one frame."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44100, layout="mono")
        cover = output.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame.from_image(noise(32, 32))))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
        output.mux(cover.encode())
    return file.getvalue()


def faststart(keep: float) -> bytes:
    """A video whose header is in front, and of whose rest that part is there."""
    whole = video(60, "libx264", options={"g": "10"}, container_options={"movflags": "faststart"})
    pixels = whole.index(b"mdat")
    return whole[: pixels + int((len(whole) - pixels) * keep)]


def damaged(container: str, codec: str) -> bytes:
    """A video in whose middle, between header and index, is noise."""
    whole = bytearray(video(60, codec, container))
    end = whole.index(b"moov") if container == "mp4" else 3 * len(whole) // 4
    middle = slice(end // 4, end - 200)
    whole[middle] = np.random.default_rng(0).bytes(len(whole[middle]))
    return bytes(whole)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n"

VIDEOS: list[tuple[str, Make, str, str]] = [
    ("absent", lambda path: None, "missing video", "no such video"),
    (
        "directory",
        lambda path: path.mkdir(),
        "bad video",
        "cannot be used: it is a directory without images",
    ),
    ("pipe", lambda path: os.mkfifo(path), "bad video", "it is a pipe or a device"),
    ("empty", content(b""), "bad video", r"not a video that can be read: .* \(it is empty\)|cannot be used"),
    ("text", content(b"no video" * 100), "bad video", "not a video that can be read"),
    ("web page", content(HTML), "bad video", r"\(it is a web page\)"),
    ("Git LFS pointer", content(LFS), "bad video", "git lfs pull"),
    ("image", content(encoded(noise(32, 32), "JPEG")), "bad video", "not a video that can be read"),
    ("playlist", content(PLAYLIST), "bad video", "not a video that can be read"),
    (
        "list of files",
        content(b"ffconcat version 1.0\nfile a.mp4\n"),
        "bad video",
        "not a video that can be read",
    ),
    ("sound", content(sound), "bad video", "not a video|no video stream"),
    ("song with a cover", content(song_with_cover), "bad video", "it has no video stream"),
    ("cut before its header", content(lambda: video(30)[:2000]), "bad video", "video.mp4"),
    ("cut after its header", content(lambda: faststart(0.5)), "bad video", "cut off|damaged"),
    ("nothing after its header", content(lambda: faststart(0)), "bad video", "no frames|damaged"),
    (
        "noise in the middle, mp4",
        content(lambda: damaged("mp4", "libx264")),
        "bad video",
        "damaged|cannot be",
    ),
    ("noise in the middle, mkv", content(lambda: damaged("matroska", "ffv1")), "bad video", "video.mp4"),
    ("zero frames", content(lambda: video(0)), "bad video", "video.mp4"),
]


@pytest.mark.parametrize(
    ("make", "reason", "message"), [case[1:] for case in VIDEOS], ids=[c[0] for c in VIDEOS]
)
def test_a_malformed_video_is_a_sample_error(tmp_path: Path, make: Make, reason: str, message: str) -> None:
    path = tmp_path / "video.mp4"
    make(path)
    with pytest.raises(SampleError, match=message) as caught:
        info = video_info(str(path), "f:7")
        list(load_frames(str(path), tuple(range(info.frames)), "f:7"))
    assert (caught.value.reason, caught.value.sample_id) == (reason, "f:7")
    assert str(path) in str(caught.value)


def test_frames_of_an_absurd_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = video(3)
    monkeypatch.setattr("erniekit.data.media.frames.MAX_PIXELS", 48 * 96 - 1)
    with pytest.raises(SampleError, match="its frames are 96 x 48 pixels; at most 4,607 are read") as caught:
        video_info(source, "f:7")
    assert caught.value.reason == "bad video"


def test_a_video_of_no_frames_is_reported() -> None:
    with pytest.raises(SampleError, match="it has no frames") as caught:
        video_info((), "f:7")
    assert caught.value.reason == "bad video"


def test_a_bad_frame_among_images_is_reported() -> None:
    with pytest.raises(SampleError, match="not an image") as caught:
        list(load_frames((encoded(noise(8, 8)), b"x"), (0, 1), "f:7"))
    assert caught.value.reason == "bad image"


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("mpeg4", "mp4"),
        ("libx264", "matroska"),
        ("libx264", "mpegts"),
        ("libvpx-vp9", "webm"),
        ("mjpeg", "avi"),
    ],
)
def test_damaged_bytes_never_give_another_error(codec: str, container: str) -> None:
    whole = video(12, codec, container, options={"g": "5"} if codec != "mjpeg" else {})
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(40):
        bytes_of = np.frombuffer(whole, np.uint8).copy()
        places = generator.integers(0, len(bytes_of), 1 + int(generator.integers(0, 30)))
        bytes_of[places] = generator.integers(0, 256, len(places))
        source = bytes_of.tobytes()[: int(generator.integers(1, 2 * len(whole)))]
        try:
            info = video_info(source, "f:7")
            wanted = (0, info.frames // 2, info.frames - 1)
            assert len(list(load_frames(source, wanted, "f:7"))) == 3
        except SampleError as error:
            assert error.reason == "bad video"
            refused += 1
    assert refused
