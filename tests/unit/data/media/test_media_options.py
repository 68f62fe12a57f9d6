"""How one image or video is read where its sample says so: tokens, pixels, times, and the store."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from erniekit.config import DataConfig
from erniekit.data.chat.conversation import Conversation, ImagePart, Message, SampleError, TextPart, VideoPart
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.data.encode.samples import SampleReader
from erniekit.data.media.frames import load_frames, video_info
from erniekit.data.media.item import decode
from erniekit.data.store.store import DocumentStore, StoreWriter
from tests.unit.data.helpers import encoded, noise
from tests.unit.data.videos import number_of, numbered, video

SIDE = 28


def asked(part: ImagePart | VideoPart) -> Conversation:
    messages = (Message("user", (part, TextPart("?")), False), Message("assistant", (TextPart("a"),), True))
    return Conversation(messages, "f:1")


def frame(number: int) -> bytes:
    return encoded(Image.fromarray(numbered(number)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 frames, 10 a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    path.write_bytes(video(60))
    return str(path)


@pytest.fixture(scope="module")
def encoder(vl_checkpoint: Path) -> Encoder:
    return make_encoder(
        vl_checkpoint, DataConfig.without_sources(video_min_frames=4, video_max_frames=20, video_fps=2)
    )


def stored(document: Document, directory: Path) -> Document:
    with StoreWriter(directory) as writer:
        writer.add(document)
        writer.finish({})
    return DocumentStore(directory)[0]


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({}, range(0, 60, 5)),
        ({"fps": 1}, range(0, 60, 10)),
        ({"fps": 0.1}, [0, 15, 30, 45]),
        ({"min_frames": 6, "max_frames": 6}, range(0, 60, 10)),
        ({"max_frames": 4}, [0, 15, 30, 45]),
        ({"min_frames": 30}, range(0, 60, 2)),
        ({"start": 2, "end": 3.9}, range(20, 40, 5)),
        ({"start": 4}, range(40, 60, 5)),
        ({"end": 2.9, "fps": 5}, [*range(0, 30, 2), 28]),
        ({"start": 0.7, "end": 0.7, "min_frames": 2, "max_frames": 2}, [7, 7]),
        ({"start": 5, "end": 99}, [50, 52, 55, 57]),
    ],
)
def test_frames_that_are_picked(
    encoder: Encoder, clip: str, tmp_path: Path, options: dict[str, Any], frames: Any
) -> None:
    document = encoder.encode(asked(VideoPart(clip, **options)))
    assert document.media[0].frames == tuple(frames)
    assert encoder.media_spec is not None
    found = stored(document, tmp_path / "store")
    patches = decode(found.media, found.sample_id, encoder.media_spec)[0]
    assert len(patches) == document.num_patches
    np.testing.assert_array_equal(patches, decode(document.media, document.sample_id, encoder.media_spec)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 6.5}, "no frame from second 6.5: it is 6.00 seconds long"),
        ({"start": 1.01, "end": 1.09}, "no frame from second 1.01 to second 1.09"),
        ({"fps": 1, "min_frames": 4, "max_frames": 4}, "both fps and the number of frames"),
        ({"times": (1.0,)}, "timestamps are only for frames given as images"),
        ({"max_pixels": 100}, r"max_pixels \(100\) must allow one token of 28x28"),
    ],
)
def test_what_a_video_cannot_give(encoder: Encoder, clip: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        encoder.encode(asked(VideoPart(clip, **options)))


@pytest.mark.parametrize("pixels", [10**9, 10**30])
@pytest.mark.parametrize("is_video", [False, True])
def test_sizes_that_do_not_fit_into_memory(encoder: Encoder, clip: str, is_video: bool, pixels: int) -> None:
    part = VideoPart(clip, min_pixels=pixels) if is_video else ImagePart(frame(1), min_pixels=pixels)
    with pytest.raises(SampleError, match="its min_pixels enlarges it to more than 89,478,485 pixels"):
        encoder.encode(asked(part))


def test_the_tokens_of_all_media_together_are_bounded(encoder: Encoder, clip: str) -> None:
    pixels = 80_000_000
    with pytest.raises(SampleError, match="it takes 612,912 tokens, more than 524,288, the limit"):
        encoder.encode(asked(VideoPart(clip, min_pixels=pixels, min_frames=12, max_frames=12)))
    large = TextPart("a"), ImagePart(frame(1), min_pixels=pixels)
    question = Message("user", large * 3, False), Message("assistant", (TextPart("a"),), True)
    for messages in (question * 2, (Message("user", large * 6, False), question[1])):
        with pytest.raises(SampleError, match="its images and videos take more than 524,288 tokens") as error:
            encoder.encode(Conversation(messages, "f:1"))
        assert error.value.reason == "too long"


@pytest.mark.parametrize("is_video", [False, True])
def test_bounds_of_pixels_shape_tokens_and_patches(
    encoder: Encoder, clip: str, tmp_path: Path, is_video: bool
) -> None:
    source = clip if is_video else encoded(noise(300, 300))
    kind = VideoPart if is_video else ImagePart
    spec = encoder.media_spec
    assert spec is not None
    usual = encoder.encode(asked(kind(source)))
    most = 8 * SIDE**2
    small = encoder.encode(asked(kind(source, max_pixels=most)))
    large = encoder.encode(asked(kind(source, min_pixels=2000 * SIDE**2)))
    for document, is_right in (
        (small, lambda area: area <= most),
        (large, lambda area: area >= 2000 * SIDE**2),
    ):
        _, rows, columns = document.media[0].grid_thw
        assert is_right(rows * columns * 14 * 14)
        assert document.num_patches != usual.num_patches
        read = stored(document, tmp_path / str(len(document)))
        assert read.media == document.media
        assert len(decode(read.media, read.sample_id, spec)[0]) == document.num_patches
    assert len(small) < len(usual) < len(large)


def test_times_of_frames_follow_their_rate(
    vl_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    monkeypatch.setattr("erniekit.data.media.video.draw_timestamp", lambda image, time: drawn.append(time))
    encoder = make_encoder(vl_checkpoint, DataConfig.without_sources(video_fps=2))
    frames = tuple(frame(number) for number in range(4))
    for number, (options, expected) in enumerate(
        [
            ({}, [0, 0.5, 1, 1.5]),
            ({"fps": 0.1}, [0, 10, 20, 30]),
            ({"fps": 10.0}, [0, 0.1, 0.2, 0.3]),
            ({"times": (0.0, 3.5, 4.0, 60.0)}, [0, 3.5, 4, 60]),
            ({"fps": 0.1, "min_frames": 2, "max_frames": 2}, [0, 20]),
            ({"fps": 1.0, "start": 1, "end": 2}, [1, 2]),
            ({"times": (0.0, 3.5, 4.0, 60.0), "start": 3, "end": 5}, [3.5, 4]),
        ]
    ):
        drawn.clear()
        document = stored(encoder.encode(asked(VideoPart(frames, **options))), tmp_path / str(number))
        decode(document.media, document.sample_id, encoder.media_spec)
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-9)
    with pytest.raises(SampleError, match="needs fps"):
        encoder.encode(asked(VideoPart(frames, start=1)))
    with pytest.raises(SampleError, match="4 frames and 2 timestamps"):
        encoder.encode(asked(VideoPart(frames, times=(0.0, 1.0))))


def test_times_are_seen(vl_checkpoint: Path) -> None:
    """The same frames at other rates are other pixels, in documents of one length."""
    encoder = make_encoder(vl_checkpoint)
    frames = (frame(63),) * 4  # white, as the letters are black
    slow, fast = (encoder.encode(asked(VideoPart(frames, fps=fps))) for fps in (0.1, 10.0))
    assert len(slow) == len(fast)
    assert slow.media != fast.media
    one, other = (
        decode(document.media, document.sample_id, encoder.media_spec)[0] for document in (slow, fast)
    )
    assert not np.array_equal(one, other)


def directory_of_frames(path: Path) -> Path:
    path.mkdir()
    for number in (1, 2, 10):
        (path / f"frame{number}.PNG").write_bytes(frame(number))
    (path / "frame².png").write_bytes(frame(11))  # no digit that counts
    for other in ("frame3.txt", "labels.json", ".frame4.png", "._frame1.PNG"):
        (path / other).write_text("no image")
    (path / "more").mkdir()
    return path


def test_a_directory_holds_the_frames(encoder: Encoder, tmp_path: Path) -> None:
    directory = directory_of_frames(tmp_path / "clip")
    found = [number_of(image) for image in load_frames(str(directory), (0, 1, 2, 3), "f:1")]
    assert found == [1, 2, 10, 11]
    assert video_info(str(directory), "f:1").frames == 4
    document = encoder.encode(asked(VideoPart(str(directory), fps=0.5)))
    assert document.media[0].frames == (0, 1, 2, 3)
    assert document.media[0].times == (0.0, 2.0, 4.0, 6.0)
    names = ("frame1.PNG", "frame2.PNG", "frame10.PNG", "frame².png")
    listed = tuple(str(directory / name) for name in names)
    same = encoder.encode(asked(VideoPart(listed, fps=0.5)))
    np.testing.assert_array_equal(
        decode(document.media, document.sample_id, encoder.media_spec)[0],
        decode(same.media, same.sample_id, encoder.media_spec)[0],
    )


def test_a_directory_without_images_is_an_error(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "frame.txt").write_text("x")
    with pytest.raises(SampleError, match="a directory without images"):
        encoder.encode(asked(VideoPart(str(tmp_path / "empty"))))
    with pytest.raises(SampleError, match="it is a directory, not a file"):
        encoder.encode(asked(ImagePart(str(tmp_path / "empty"))))


def test_a_store_knows_that_a_directory_has_changed(encoder: Encoder, tmp_path: Path) -> None:
    directory = directory_of_frames(tmp_path / "clip")
    document = encoder.encode(asked(VideoPart(str(directory))))
    stored(document, tmp_path / "store")
    store = DocumentStore(tmp_path / "store")
    assert store.changed_media() is None
    Image.new("RGB", (200, 100)).save(directory / "frame2.PNG")
    assert store.changed_media() == str(directory)


def test_the_history_of_both_prompts_is_trimmed(vl_checkpoint: Path) -> None:
    encoder = make_encoder(vl_checkpoint)
    answer = Message("assistant", (TextPart("Paris"),), False)

    def prompt(content: bytes) -> tuple[Message, ...]:
        old = Message("user", (ImagePart(content), TextPart("what is in the image " * 9)), False)
        last = Message("user", (ImagePart(content), TextPart("seven")), False)
        return old, answer, last

    good, bad = (Message("assistant", (TextPart(text),), True) for text in ("a cat", "two apples"))
    one, other = (encoded(noise(28, 28, seed)) for seed in (1, 2))
    pair = Conversation((*prompt(one), good), "f:1", (), (bad,), prompt(other))
    reader = SampleReader(encoder, 80, "trim_history", pairs="shared")
    sample = reader.encode(pair)
    assert sample.trimmed == 1
    assert [item.source for item in sample.documents[0].media] == [one, other]
    short = dataclasses.replace(pair, messages=pair.messages[2:], rejected_prompt=pair.rejected_prompt[2:])
    whole = SampleReader(encoder, 999, "error", pairs="shared").encode(short).documents[0]
    np.testing.assert_array_equal(sample.documents[0].input_ids, whole.input_ids)
