import dataclasses
import importlib.util
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from erniekit.config import DataConfig
from erniekit.data.chat.conversation import SampleError
from erniekit.data.media import frames as frames_module
from erniekit.data.media.frames import VideoInfo, load_frames, video_info
from erniekit.data.media.patches import ImageSpec, patchify, smart_resize
from erniekit.data.media.video import (
    VideoSpec,
    draw_timestamp,
    patchify_video,
    sample_frames,
    video_grid,
    video_tokens,
)
from erniekit.errors import CheckpointError, ConfigError
from tests.unit.data.helpers import PROCESSOR, SHARED, encoded, noise, write_json
from tests.unit.data.videos import video

SAMPLES = Path(__file__).resolve().parents[4] / "data" / "samples"
FONT = Path(frames_module.__file__).parent / "fonts" / "Roboto-Regular.ttf"
DEFAULT = VideoSpec(2.0, 16, 180, "leading", True, 299 * 28 * 28, 1196 * 28 * 28, 14, 2, 0)
SMALL = dataclasses.replace(DEFAULT, min_pixels=28 * 28, max_pixels=6 * 28 * 28, timestamps=False)


def reference_frames(total: int, rate: float, fps: float, least: int, most: int) -> list[int]:
    """Ernie4_5_VLMoeVideoProcessor.sample_frames, with torch as there."""
    torch = pytest.importorskip("torch")
    wanted = min(max(total / rate * fps, least), most, total)
    indices = torch.arange(0, total, total / wanted).int().tolist()
    return [index for index in indices if index < total]  # a decoder finds no frame beyond


def test_the_frames_picked_equal_the_reference_over_many_videos() -> None:
    generator = np.random.default_rng(0)
    for _ in range(3000):
        total = int(np.exp(generator.uniform(0, np.log(40000))))
        rate = float(generator.choice([10, 12.5, 15, 24000 / 1001, 25, 30000 / 1001, 30, 60]))
        fps = float(generator.choice([0.5, 1, 2, 3, 7]))
        least, most = sorted(generator.integers(1, 200, 2).tolist())
        spec = dataclasses.replace(DEFAULT, fps=fps, min_frames=least, max_frames=most)
        expected = reference_frames(total, rate, fps, least, most)
        expected += expected[-1:] * (len(expected) % 2)
        assert list(sample_frames(VideoInfo(total, rate, 9, 9), spec, "k")) == expected, (total, rate, fps)


def test_picks_by_hand() -> None:
    info = VideoInfo(frames=40, fps=10.0, height=9, width=9)  # 4 s

    def pick(**changes: Any) -> tuple[int, ...]:
        return sample_frames(info, dataclasses.replace(DEFAULT, min_frames=1, **changes), "k")

    assert pick() == (0, 5, 10, 15, 20, 25, 30, 35)
    assert pick(sampling="middle") == (2, 7, 12, 17, 22, 27, 32, 37)
    assert pick(fps=0.75) == (0, 13, 26, 26)
    assert pick(max_frames=4) == (0, 10, 20, 30)
    assert pick(max_frames=3) == (0, 13, 26, 26)
    assert pick(fps=0.01) == (0, 0)
    assert len(sample_frames(info, DEFAULT, "k")) == 16
    assert len(pick(fps=99, max_frames=500)) == 40
    assert sample_frames(VideoInfo(1, 25.0, 9, 9), DEFAULT, "k") == (0, 0)


def test_frames_given_as_images_are_all_kept_up_to_the_limit() -> None:
    assert sample_frames(VideoInfo(5, 0.0, 9, 9), DEFAULT, "k") == (0, 1, 2, 3, 4, 4)
    assert sample_frames(VideoInfo(40, 0.0, 9, 9), DEFAULT, "k") == tuple(range(40))
    assert len(sample_frames(VideoInfo(400, 0.0, 9, 9), DEFAULT, "k")) == 180


def test_random_picks_depend_on_seed_and_key_alone() -> None:
    info = VideoInfo(frames=1000, fps=25.0, height=9, width=9)
    spec = dataclasses.replace(DEFAULT, sampling="random")
    first = sample_frames(info, spec, "a.mp4")
    assert first == sample_frames(info, pickle.loads(pickle.dumps(spec)), "a.mp4")
    assert first != sample_frames(info, spec, "b.mp4")
    assert first != sample_frames(info, dataclasses.replace(spec, seed=1), "a.mp4")
    starts = sample_frames(info, DEFAULT, "a.mp4")
    for pick, start, end in zip(first, starts, (*starts[1:], 1000), strict=True):
        assert start <= pick < end
    # Fixed for ever: a resumed run must see the frames that it saw before.
    assert first[:6] == PINNED


PINNED = (3, 16, 34, 40, 60, 67)


@pytest.mark.parametrize("seconds", [0, 0.5, 9.995, 59.999, 61.25, 3599.99, 3723.456, 360000])
def test_timestamps_equal_the_reference(seconds: float) -> None:
    frame = noise(120, 200)
    hours, rest = seconds // 3600, seconds % 3600
    text = f"time: {int(hours):02d}:{int(rest // 60):02d}:{rest % 60:05.02f}"
    expected = frame.copy()
    size = int(min(*expected.size) * 0.1)
    ImageDraw.Draw(expected).text(
        (0, 0),
        text,
        font=ImageFont.truetype(FONT, size),
        fill=(0, 0, 0),
        stroke_width=int(size * 0.1),
        stroke_fill=(255, 255, 255),
    )
    draw_timestamp(frame, seconds)
    np.testing.assert_array_equal(np.asarray(frame), np.asarray(expected))


def test_a_tiny_frame_can_carry_a_timestamp() -> None:
    """The height of its text is at least one pixel."""
    frame = Image.new("RGB", (4, 3), (255, 255, 255))
    draw_timestamp(frame, 1.0)
    assert np.asarray(frame).min() < 255


def test_the_font_comes_with_its_licence() -> None:
    licence = (FONT.parent / "LICENSE.txt").read_text(encoding="utf-8")
    assert licence.startswith("Roboto-Regular.ttf")
    assert "Apache License" in licence and "TERMS AND CONDITIONS" in licence


@pytest.mark.parametrize("timestamps", [False, True])
def test_patches_are_those_of_the_frames_as_images(timestamps: bool) -> None:
    source = video(20, "libx264", height=90, width=130)
    spec = dataclasses.replace(DEFAULT, timestamps=timestamps, min_pixels=3136, max_pixels=28 * 28 * 20)
    info = video_info(source, "f:1")
    frames = (0, 7, 19, 19)
    grid = video_grid(info, frames, spec)
    assert grid == (4, *(side // 14 for side in smart_resize(90, 130, spec)))
    patches = patchify_video(source, frames, grid, spec, "f:1")
    assert patches.shape == (grid[0] * grid[1] * grid[2], spec.patch_dim) and patches.dtype == np.uint8
    assert video_tokens(grid, spec) * 8 == len(patches)
    expected = []
    for number, frame in zip(frames, load_frames(source, frames, "f:1"), strict=True):
        if timestamps:
            draw_timestamp(frame, number / 10)
        as_image = ImageSpec(spec.min_pixels, spec.max_pixels, 14, 2, (0.5,) * 3, (0.5,) * 3)
        expected.append(patchify(frame, as_image)[0])
    np.testing.assert_array_equal(patches, np.concatenate(expected))


def test_frames_of_other_sizes_are_brought_to_that_of_the_first() -> None:
    images = (encoded(noise(56, 84)), encoded(noise(112, 112, seed=1)))
    grid = video_grid(video_info(images, "f:1"), (0, 1), SMALL)
    patches = patchify_video(images, (0, 1), grid, SMALL, "f:1")
    assert grid == (2, 4, 6)
    resized = noise(112, 112, seed=1).resize((84, 56), Image.Resampling.BICUBIC)
    as_image = ImageSpec(SMALL.min_pixels, SMALL.max_pixels, 14, 2, (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(patches[24:], patchify(resized, as_image)[0])


def test_times_of_frames_given_as_images_follow_from_fps() -> None:
    images = tuple(encoded(noise(56, 84, seed=seed)) for seed in range(2))
    spec = dataclasses.replace(SMALL, timestamps=True, fps=0.5)
    patches = patchify_video(images, (0, 1), (2, 4, 6), spec, "f:1")
    second = noise(56, 84, seed=1)
    draw_timestamp(second, 2.0)
    as_image = ImageSpec(SMALL.min_pixels, SMALL.max_pixels, 14, 2, (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(patches[24:], patchify(second, as_image)[0])


def test_a_video_that_has_changed_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(video(20))
    info = video_info(str(path), "f:1")
    frames = sample_frames(info, SMALL, "k")
    grid = video_grid(info, frames, SMALL)
    for changed in (video(8), video(20, width=48), video(20, height=2, width=600)):
        path.write_bytes(changed)
        with pytest.raises(SampleError, match=r"^f:1: the video .*a\.mp4 has changed") as caught:
            patchify_video(str(path), frames, grid, SMALL, "f:1")
        assert caught.value.reason == "bad video"


def test_only_one_frame_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = 0

    class Frame(Image.Image):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    most = 0
    original = frames_module._image

    def watched(*arguments: Any) -> Image.Image:
        nonlocal alive, most
        image = original(*arguments)
        image.__class__ = Frame
        alive += 1
        most = max(most, alive)
        return image

    monkeypatch.setattr(frames_module, "_image", watched)
    source = video(20)
    grid = video_grid(video_info(source, "f:1"), tuple(range(20)), SMALL)
    patchify_video(source, tuple(range(20)), grid, SMALL, "f:1")
    assert most <= 2


def test_spec_without_a_file_of_its_own(tmp_path: Path) -> None:
    write_json(tmp_path / "preprocessor_config.json", PROCESSOR)
    assert VideoSpec.from_checkpoint(tmp_path) == DEFAULT
    own = VideoSpec.from_checkpoint(
        tmp_path,
        DataConfig.without_sources(
            video_fps=1,
            video_min_frames=2,
            video_max_frames=8,
            video_sampling="random",
            video_timestamps=False,
            video_min_pixels=784,
            video_max_pixels=7840,
        ),
        seed=3,
    )
    assert own == VideoSpec(1, 2, 8, "random", False, 784, 7840, 14, 2, 3)


def _videos(**asked: Any) -> DataConfig:
    return DataConfig.without_sources(**{f"video_{name}": value for name, value in asked.items()})


def test_a_limit_that_was_asked_for_moves_the_other(tmp_path: Path) -> None:
    write_json(tmp_path / "preprocessor_config.json", PROCESSOR)

    def limits(**asked: int) -> tuple[int, int, int, int]:
        spec = VideoSpec.from_checkpoint(tmp_path, _videos(**asked))
        return spec.min_frames, spec.max_frames, spec.min_pixels, spec.max_pixels

    usual = (16, 180, 234416, 937664)
    assert limits(max_frames=8) == (8, 8, *usual[2:])
    assert limits(min_frames=300) == (300, 300, *usual[2:])
    assert limits(max_pixels=100_000) == (*usual[:2], 25_000, 100_000)
    assert limits(max_pixels=300_000) == (*usual[:2], 234416, 300_000)
    assert limits(min_pixels=1_000_000) == (*usual[:2], 1_000_000, 4_000_000)


OWN: dict[str, Any] = {
    "draw_on_frames": False,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 3136, "longest_edge": 6272},
    "min_frames": 4,
    "max_frames": 12,
    "fps": None,
}


def test_spec_of_a_checkpoint_with_a_file_of_its_own(tmp_path: Path) -> None:
    write_json(tmp_path / "preprocessor_config.json", PROCESSOR)
    write_json(tmp_path / "video_preprocessor_config.json", OWN)
    expected = VideoSpec(2.0, 4, 12, "leading", False, 3136, 6272, 14, 2, 0)
    assert VideoSpec.from_checkpoint(tmp_path) == expected
    assert VideoSpec.from_checkpoint(tmp_path, _videos(timestamps=True)).timestamps
    write_json(tmp_path / "processor_config.json", {"video_processor": {**OWN, "fps": 1.5}})
    assert VideoSpec.from_checkpoint(tmp_path) == dataclasses.replace(expected, fps=1.5)


def test_bad_specs(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json"):
        VideoSpec.from_checkpoint(tmp_path)
    path = tmp_path / "video_preprocessor_config.json"
    changes: list[tuple[dict[str, Any], str]] = [
        ({"patch_size": "x"}, "patch_size must be a whole number"),
        ({"fps": -1}, "fps must be a number above 0"),
        ({"size": 7}, "size must be an object"),
        ({"max_frames": 1e300}, "max_frames must be a whole number"),
        ({"temporal_patch_size": 1}, "temporal_patch_size must be 2"),
    ]
    for change, message in changes:
        write_json(path, {**OWN, **change})
        with pytest.raises(CheckpointError, match=message):
            VideoSpec.from_checkpoint(tmp_path)
    write_json(path, {key: value for key, value in OWN.items() if key not in ("merge_size", "patch_size")})
    found = VideoSpec.from_checkpoint(tmp_path)
    assert (found.patch_size, found.merge_size) == (14, 2)
    write_json(path, OWN)
    impossible: list[tuple[dict[str, Any], str]] = [
        ({"fps": 0}, r"data\.video_fps \(0\)"),
        ({"fps": float("nan")}, r"data\.video_fps"),
        ({"min_frames": 9, "max_frames": 4}, r"data\.video_min_frames \(9\).*data\.video_max_frames \(4\)"),
        ({"min_frames": 0}, r"data\.video_min_frames \(0\)"),
        ({"min_pixels": 99, "max_pixels": 9}, r"data\.video_min_pixels \(99\)"),
        ({"max_pixels": 100}, r"data\.video_max_pixels \(100\) must allow one token"),
        ({"sampling": "best"}, r"data\.video_sampling \(best\) must be one of leading, middle, random"),
    ]
    for asked, message in impossible:
        with pytest.raises(ConfigError, match=message):
            VideoSpec.from_checkpoint(tmp_path, _videos(**asked))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/reference_models")
def test_spec_of_the_reference_models() -> None:
    assert VideoSpec.from_checkpoint(SHARED / "reference_models" / "vl_hub") == DEFAULT
    without = dataclasses.replace(DEFAULT, timestamps=False)
    assert VideoSpec.from_checkpoint(SHARED / "reference_models" / "vl_hf") == without


def test_the_sample_videos_show_what_their_chats_say() -> None:
    text = (SAMPLES / "video.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    assert len(records) == 3
    files = sorted((SAMPLES / "videos").iterdir())
    assert sum(file.stat().st_size for file in files) < 60_000
    for file in files:
        assert f"videos/{file.name}" in text
        assert video_info(str(file), "f:1") == VideoInfo(24, 10.0, 120, 160)
    colour = {"red_circle_right.mp4": (208, 48, 48), "blue_square_down.mp4": (50, 90, 200)}
    for file in files:
        places = [middle(frame, colour[file.name]) for frame in load_frames(str(file), (0, 12, 23), "f:1")]
        moves = 0 if "right" in file.name else 1
        assert places[0][moves] < places[1][moves] - 20 < places[2][moves] - 40
        assert abs(places[0][1 - moves] - places[2][1 - moves]) < 3


def test_the_sample_chats_are_what_their_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    path = SAMPLES.parents[1] / "tools" / "datasets" / "make_video.py"
    spec = importlib.util.spec_from_file_location("make_video", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_video", script)  # dataclasses look their module up
    spec.loader.exec_module(script)
    written = [
        json.loads(line) for line in (SAMPLES / "video.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert script.video_samples() == written
    for motion in script.MOTIONS:
        drawn = list(script.draw(motion))
        shown = load_frames(str(SAMPLES / motion.file), tuple(range(len(drawn))), "f:1")
        for one, other in zip(drawn, shown, strict=True):
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean() < 3


def middle(frame: Image.Image, colour: tuple[int, int, int]) -> tuple[float, float]:
    """(x, y) of the middle of what has that colour."""
    near = np.abs(np.asarray(frame).astype(int) - colour).max(-1) < 30
    rows, columns = np.nonzero(near)
    assert len(rows) > 500
    return float(columns.mean()), float(rows.mean())
