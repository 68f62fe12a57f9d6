import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from erniekit.data.chat.conversation import SampleError
from erniekit.data.media import frames as frames_module
from erniekit.data.media.frames import VideoInfo, load_frames, video_info
from erniekit.data.media.video import VideoSpec, sample_frames
from tests.unit.data.helpers import SHARED, encoded
from tests.unit.data.videos import HEIGHT, WIDTH, number_of, numbered, video

KINDS = [
    ("mpeg4", "mp4", {}),
    ("mpeg4", "mp4", {"bf": "2", "g": "12"}),
    ("libx264", "mp4", {"bf": "3", "g": "12"}),
    ("libx264", "matroska", {"g": "10"}),
    ("libx264", "mpegts", {"g": "10"}),
    ("libx264", "flv", {"g": "10"}),
    ("libvpx", "webm", {"g": "20"}),
    ("libvpx-vp9", "webm", {"g": "12"}),
    ("ffv1", "matroska", {}),
    ("mjpeg", "avi", {}),
    ("mpeg4", "avi", {"bf": "2", "g": "12"}),
    ("mpeg2video", "mpeg", {"bf": "2"}),
    ("gif", "gif", {}),
]


def numbers(source: Any, frames: tuple[int, ...]) -> list[int]:
    return [number_of(frame) for frame in load_frames(source, frames, "f:1")]


@pytest.mark.parametrize(("codec", "container", "options"), KINDS)
def test_exactly_the_frames_that_were_asked_for(codec: str, container: str, options: dict[str, str]) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg cannot write {codec}")
    source = video(40, codec, container, options=options)
    assert video_info(source, "f:1") == VideoInfo(40, 10.0, HEIGHT, WIDTH)
    assert numbers(source, tuple(range(40))) == list(range(40))
    some = (0, 3, 11, 12, 13, 25, 38, 39, 39)
    assert numbers(source, some) == list(some)
    assert numbers(source, (24,)) == [24]


def test_path_bytes_and_frames_are_the_same_video(tmp_path: Path) -> None:
    source = video(6)
    (tmp_path / "a b%20.mp4").write_bytes(source)
    assert numbers(str(tmp_path / "a b%20.mp4"), (1, 5)) == numbers(source, (1, 5)) == [1, 5]
    images = tuple(encoded(Image.fromarray(numbered(number))) for number in range(6))
    assert numbers(images, (1, 5, 5)) == [1, 5, 5]
    assert video_info(images, "f:1") == VideoInfo(6, 0.0, HEIGHT, WIDTH)


@pytest.mark.parametrize(("rotation", "height", "width"), [(90, 96, 48), (-90, 96, 48), (180, 48, 96)])
def test_a_video_of_a_turned_phone_is_upright(rotation: int, height: int, width: int) -> None:
    source = video(3, rotation=rotation)
    info = video_info(source, "f:1")
    (frame,) = load_frames(source, (2,), "f:1")
    assert (info.height, info.width) == (frame.height, frame.width) == (height, width)
    plain = Image.fromarray(numbered(2)).rotate(rotation, expand=True)
    assert np.abs(np.asarray(frame).astype(int) - np.asarray(plain)).mean() < 8


def cut_in_front(source: bytes, frames: int) -> bytes:
    """The same stream with an edit list that leaves out the first frames, though they stay in the file."""
    file = io.BytesIO()
    options = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    with av.open(io.BytesIO(source)) as old, av.open(file, "w", format="mp4", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                shift = round(frames / 10 / packet.time_base)
                packet.stream, packet.pts, packet.dts = stream, packet.pts - shift, packet.dts - shift
                new.mux(packet)
    return file.getvalue()


def test_frames_that_an_edit_list_cuts_off_do_not_count() -> None:
    source = cut_in_front(video(40, options={"g": "8"}), 11)
    assert av.open(io.BytesIO(source)).streams.video[0].frames == 40
    assert video_info(source, "f:1").frames == 29
    assert numbers(source, (0, 1, 5, 28)) == [11, 12, 16, 39]


def test_frames_of_a_fragmented_file_are_counted() -> None:
    options = {"movflags": "frag_keyframe+empty_moov"}
    source = video(40, "libx264", options={"g": "10"}, container_options=options)
    assert av.open(io.BytesIO(source)).streams.video[0].frames == 0
    assert video_info(source, "f:1").frames == 40
    assert numbers(source, (0, 25, 39)) == [0, 25, 39]


def test_hidden_frames_of_vp8_do_not_count() -> None:
    file = io.BytesIO()
    with av.open(io.BytesIO(video(12, "libvpx", "webm"))) as old, av.open(file, "w", format="webm") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if not packet.size:
                continue
            hidden = bytearray(bytes(packet))
            if number == 5:
                hidden[0] &= ~0x10  # show_frame
            changed = av.Packet(bytes(hidden))
            changed.stream, changed.pts, changed.dts = stream, packet.pts, packet.dts
            changed.time_base, changed.is_keyframe = packet.time_base, packet.is_keyframe
            new.mux(changed)
    assert video_info(file.getvalue(), "f:1").frames == 11
    assert numbers(file.getvalue(), tuple(range(11))) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_distant_frames_do_not_cost_those_between(monkeypatch: pytest.MonkeyPatch) -> None:
    source = video(60, "libx264", options={"g": "5", "bf": "0"})
    decoded = []
    original = frames_module._decode

    def watched(*arguments: Any) -> Any:
        for frame in original(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(frames_module, "_decode", watched)
    assert numbers(source, (0, 30, 55)) == [0, 30, 55]
    assert len(decoded) <= 6


def test_a_header_that_counts_a_frame_too_many_is_forgiven() -> None:
    source = video(10)
    assert numbers(source, (8, 9, 10, 11)) == [8, 9, 9, 9]
    with pytest.raises(SampleError, match="cut off: frame 13 is needed, but it ends after 10") as caught:
        numbers(source, (8, 12))
    assert caught.value.reason == "bad video"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/testdata")
@pytest.mark.parametrize(("name", "frames"), [("1.mp4", 243), ("3.mp4", 146), ("4.mp4", 150)])
def test_frames_of_real_videos_equal_a_plain_decode(name: str, frames: int) -> None:
    path = SHARED / "testdata" / "mllm_demo_data" / name
    info = video_info(str(path), "f:1")
    assert info.frames == frames
    wanted = sample_frames(info, VideoSpec(2.0, 16, 180, "random", True, 3136, 6272, 14, 2, 0), name)
    with av.open(str(path)) as container:
        plain = [frame.to_image() for frame in container.decode(video=0)]
    assert len(plain) == frames
    for number, frame in zip(wanted, load_frames(str(path), wanted, "f:1"), strict=True):
        np.testing.assert_array_equal(np.asarray(frame), np.asarray(plain[number]))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/testdata")
def test_an_absent_video_is_reported() -> None:
    path = SHARED / "testdata" / "mllm_demo_data" / "2.avi"
    with pytest.raises(SampleError, match=r"^f:1: no such video: .*/2\.avi") as caught:
        video_info(str(path), "f:1")
    assert caught.value.reason == "missing video"


class Misleading:
    """A container with a keyframe every 10 frames that, asked for one by its time, leads to the one after."""

    def __init__(self) -> None:
        self.codec_context = self
        self.skip_frame = ""
        self.place = 0

    def seek(self, time: int, *, stream: Any) -> None:
        self.place = time // 10 * 10 + (10 if time % 10 == 0 and time else 0)

    def demux(self, stream: Any) -> Any:
        for number in range(self.place, 50):
            frame = SimpleNamespace(pts=number)
            yield SimpleNamespace(pts=number, decode=lambda frame=frame: [frame])


def test_a_container_that_leads_too_far_is_asked_for_an_earlier_place() -> None:
    container: Any = Misleading()
    keys = [(number, number - 2) for number in range(0, 50, 10)]
    found = frames_module._by_time(container, container, keys, [3, 24, 24, 41])
    assert [frame.pts for frame in found] == [3, 24, 24, 41]
