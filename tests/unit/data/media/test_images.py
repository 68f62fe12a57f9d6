import base64
import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from erniekit.config import DataConfig
from erniekit.data.chat.conversation import SampleError
from erniekit.data.media.access import PUBLIC_URLS, MediaAccess
from erniekit.data.media.images import image_size, is_url, open_image, resolve_source, source_name
from tests.unit.data.helpers import encoded, noise


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def test_path_and_bytes_are_the_same_image(tmp_path: Path) -> None:
    image = noise(20, 30)
    image.save(tmp_path / "a.png")
    for source in (str(tmp_path / "a.png"), encoded(image)):
        assert image_size(source, "f:1") == (20, 30)
        np.testing.assert_array_equal(pixels(open_image(source, "f:1")), pixels(image))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_size_and_pixels_alike(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = encoded(noise(20, 30), format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(source)))
    found = open_image(source, "f:1")
    assert image_size(source, "f:1") == (found.height, found.width) == (upright.height, upright.width)
    np.testing.assert_array_equal(pixels(found), pixels(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_image() -> None:
    source = encoded(noise(20, 30), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert image_size(source, "f:1") == (20, 30)
    assert open_image(source, "f:1").size == (30, 20)


def test_reading_the_size_does_not_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    source = encoded(noise(20, 30))

    def refuse(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert image_size(source, "f:1") == (20, 30)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode: str) -> None:
    image = noise(20, 30, mode=mode)
    source = encoded(image, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    found = open_image(source, "f:1")
    assert found.mode == "RGB"
    np.testing.assert_array_equal(pixels(found), pixels(Image.open(io.BytesIO(source))))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L"])
def test_transparency_is_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 2), (10, 20, 30, 255))
    image.paste((200, 0, 0, 0), (0, 0, 2, 2))
    if mode == "P":
        source = encoded(image.convert("P", palette=Image.Palette.ADAPTIVE))
    elif mode in ("RGB", "L"):
        key = (
            (200, 0, 0)
            if mode == "RGB"
            else Image.new("RGB", (1, 1), (200, 0, 0)).convert("L").getpixel((0, 0))
        )
        source = encoded(image.convert("RGB").convert(mode), transparency=key)
    else:
        source = encoded(image.convert(mode), "TIFF" if mode == "PA" else "PNG")
    found = pixels(open_image(source, "f:1"))
    assert (found[:, :2] == 255).all()
    assert (abs(found[:, 2:] - [10, 20, 30]) < 15).all()


def test_16_bit_grey_keeps_its_high_byte() -> None:
    values = np.arange(0, 65536, 65536 // 12, dtype=np.uint16)[:12].reshape(3, 4)
    found = open_image(encoded(Image.fromarray(values)), "f:1")
    np.testing.assert_array_equal(np.asarray(found)[..., 0], values >> 8)


def test_16_bit_grey_of_pgm_keeps_its_high_byte() -> None:
    values = np.array([[0, 255, 256], [4096, 40000, 65535]], ">u2")
    found = open_image(b"P5 3 2 65535\n" + values.tobytes(), "f:1")
    np.testing.assert_array_equal(np.asarray(found)[..., 0], values >> 8)


def test_the_transparent_value_of_16_bit_grey_is_white() -> None:
    values = np.array([[0, 300], [40000, 65535]], np.uint16)
    found = open_image(encoded(Image.fromarray(values), transparency=300), "f:1")
    assert np.asarray(found)[..., 0].tolist() == [[0, 255], [156, 255]]


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_of_unknown_range_are_refused(mode: str) -> None:
    source = encoded(Image.new(mode, (4, 4)), "TIFF")
    assert image_size(source, "f:1") == (4, 4)
    with pytest.raises(
        SampleError, match=rf"f:1: .* pixels of type {mode}: save it as RGB with 8 bits"
    ) as caught:
        open_image(source, "f:1")
    assert caught.value.reason == "bad image"


def test_cmyk_of_adobe_is_stored_inverted() -> None:
    # Pillow writes CMYK as Adobe does, inverted and marked so; without the mark the numbers mean the opposite.
    source = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in source
    assert pixels(open_image(source, "f:1"))[8, 8].tolist() == pytest.approx([255, 0, 0], abs=8)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (12, 9), colour) for colour in ("red", "blue", "green")]
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    source = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(source)) as image:
        assert image.n_frames == 3
    assert image_size(source, "f:1") == (9, 12)
    assert (pixels(open_image(source, "f:1")) == [255, 0, 0]).all()


def test_transparency_of_a_gif_is_white() -> None:
    image = Image.new("P", (8, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.paste(0, (0, 0, 4, 4))
    found = pixels(open_image(encoded(image, "GIF", transparency=0), "f:1"))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == [10, 20, 30]).all()


def test_half_transparent_pixels_are_blended_with_white() -> None:
    found = pixels(open_image(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128))), "f:1"))
    assert found[0, 0].tolist() == [127, 127, 127]


def test_missing_image_names_sample_and_path(tmp_path: Path) -> None:
    for read in (image_size, open_image):
        with pytest.raises(SampleError, match=r"^f:1: no such image: .*/none\.png") as caught:
            read(str(tmp_path / "none.png"), "f:1")
        assert caught.value.reason == "missing image"


def test_truncated_jpeg_names_sample_and_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(noise(200, 300), "JPEG")[:-500])
    assert image_size(str(path), "f:1") == (200, 300)
    with pytest.raises(SampleError, match=r"^f:1: damaged image .*/cut\.jpg: .*truncated"):
        open_image(str(path), "f:1")


@pytest.mark.parametrize("cut", [40, 60, 200])
def test_truncated_png(cut: int) -> None:
    with pytest.raises(SampleError, match=r"^f:1: .*base64 in the sample, \d+ bytes"):
        open_image(encoded(noise(64, 64))[:cut], "f:1")


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(SampleError, match=r"^f:1: not an image that can be read: .*/a\.png"):
        image_size(str(path), "f:1")


def test_a_directory_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"^f:1: cannot open the image"):
        image_size(str(tmp_path), "f:1")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 20_000])
def test_decompression_bomb_is_refused(side: int) -> None:
    # Enough of a header: the size alone decides, nothing is decoded.
    small = encoded(Image.new("1", (8, 8)))
    header = side.to_bytes(4, "big") * 2
    chunk = b"IHDR" + header + small[24:29]
    bomb = small[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + small[33:]
    for read in (image_size, open_image):
        with pytest.raises(SampleError, match="more than 89,478,485 pixels"):
            read(bomb, "f:1")


def test_base64_text_with_line_breaks() -> None:
    png = encoded(noise(8, 8))
    wrapped = base64.encodebytes(png).decode()
    assert "\n" in wrapped.strip()
    assert resolve_source("data:image/png;base64," + wrapped, Path("/"), "f:1") == png
    assert resolve_source(wrapped, Path("/"), "f:1") == png


PNG = encoded(noise(8, 8))
BASE64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a/b.png", "/data/a/b.png"),
        ("/a/b.png", "/a/b.png"),
        ("file:///a/b%20c.png", "/a/b c.png"),
        ("iVBORw0KGgo", "/data/iVBORw0KGgo"),
        (BASE64, PNG),
        ({"url": "a.png", "detail": "low"}, "/data/a.png"),
        ({"path": "a.png"}, "/data/a.png"),
        ({"bytes": BASE64, "path": None}, PNG),
        ({"url": f"data:image/png;base64,{BASE64}"}, PNG),
    ],
)
def test_where_an_image_is(value: Any, expected: str | bytes) -> None:
    assert resolve_source(value, Path("/data"), "f:1") == expected


def test_where_a_video_is() -> None:
    def resolve(value: Any) -> str | bytes:
        return resolve_source(value, Path("/data"), "f:1", kind="video")

    assert resolve("a.mp4") == "/data/a.mp4"
    assert resolve({"url": "file:///a.mp4"}) == "/a.mp4"
    assert resolve(f"data:video/mp4;base64,{BASE64}") == PNG
    assert resolve({"bytes": BASE64}) == PNG
    text = "iVBORw0KGgo" + "A" * 80  # only images are recognized by their first bytes
    assert resolve(text) == "/data/" + text


@pytest.mark.parametrize("kind", ["image", "video"])
def test_urls_need_the_setting(kind: Any) -> None:
    url = "HTTPS://example.org/a.png?b=c"
    assert resolve_source({"url": url}, Path("/"), "f:1", kind=kind, access=PUBLIC_URLS) == url
    assert is_url(url)
    with pytest.raises(SampleError, match=r"^f:1: .*data\.allow_urls.*example") as caught:
        resolve_source(url, Path("/"), "f:1", kind=kind)
    assert caught.value.reason == "not supported"


@pytest.mark.parametrize(
    ("value", "kind", "reason", "message"),
    [
        (None, "image", "bad record", "an image must be a path, a URL, a data: URI or base64 text"),
        ("", "video", "bad record", "a video must be a path, a URL, a data: URI$"),
        (7, "image", "bad record", "an image must be"),
        ({}, "video", "bad record", 'a video given as an object needs "url", "path" or "bytes"'),
        ({"url": ["a"]}, "image", "bad record", 'the "url" of an image must be a string'),
        ({"url": {"url": "a"}}, "image", "bad record", 'the "url" of an image must be a string'),
        ("data:image/png,abc", "image", "bad image", "must be base64"),
        ("data:image/png;base64", "image", "bad image", "must be base64"),
        ("data:video/mp4;base64,AAA", "video", "bad video", "base64 text of a video is damaged"),
        ({"bytes": "!!"}, "image", "bad image", "base64 text of an image is damaged"),
        ("data:video/mp4;base64,AAAA", "image", "bad image", "expected an image, found a video"),
        ("data:image/png;base64,AAAA", "video", "bad video", "expected a video, found an image"),
    ],
)
def test_what_is_no_source(value: Any, kind: Any, reason: str, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        resolve_source(value, Path("/"), "f:1", kind=kind)
    assert caught.value.reason == reason


def test_names_in_messages_are_short() -> None:
    assert source_name("a.png") == "a.png"
    assert source_name(b"123") == "(base64 in the sample, 3 bytes)"
    assert source_name(("a.png", b"1")) == "(2 frames, the first a.png)"
    assert len(source_name("x" * 100_000)) < 400


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_damaged_bytes_never_give_another_error(format: str) -> None:
    whole = encoded(noise(24, 32), format)
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = generator.integers(0, len(damaged), 1 + int(generator.integers(0, 12)))
        damaged[places] = generator.integers(0, 256, len(places))
        try:
            opened = open_image(damaged.tobytes(), "f:1")
            assert (opened.height, opened.width) == image_size(damaged.tobytes(), "f:1")
        except SampleError:
            refused += 1
    assert refused


def test_media_root_confines_files(tmp_path: Path) -> None:
    root, other = tmp_path / "media", tmp_path / "other"
    (root / "frames").mkdir(parents=True)
    other.mkdir()
    for place in (root, root / "frames", other):
        (place / "a.png").write_bytes(PNG)
    (root / "link.png").symlink_to(other / "a.png")
    (root / "inside.png").symlink_to(root / "a.png")
    access = MediaAccess(root=os.path.realpath(root))
    for value in (
        "a.png",
        "inside.png",
        "frames/../a.png",
        str(root / "a.png"),
        f"file://{root}/a.png",
        "none.png",
    ):
        assert resolve_source(value, root, "f:1", access=access)
    assert resolve_source("frames", root, "f:1", kind="video", access=access) == str(root / "frames")
    (root / "frames" / "b.png").symlink_to(other / "a.png")
    for value in (
        "../other/a.png",
        str(other / "a.png"),
        "link.png",
        f"file://{other}/a.png",
        "frames",
        "..",
    ):
        with pytest.raises(SampleError, match=r"is not in data\.media_root") as caught:
            resolve_source(value, root, "f:1", access=access)
        assert caught.value.reason == "outside media_root"
    with pytest.raises(SampleError, match="cannot open the image"):
        resolve_source("a\0", root, "f:1", access=access)


def test_access_of_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    data = DataConfig.without_sources(allow_urls=True, media_root=str(tmp_path / "link"))
    assert MediaAccess.of(data) == MediaAccess("public", os.path.realpath(tmp_path))
    data = DataConfig.without_sources(allow_urls=True, allow_private_urls=True)
    assert MediaAccess.of(data) == MediaAccess("any")
