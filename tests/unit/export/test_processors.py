"""What an export tells the processors of images and videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.config import DataConfig
from erniekit.data.media.patches import ImageSpec
from erniekit.data.media.video import FONT, VideoSpec
from erniekit.export.export import export_model
from erniekit.export.files import carry_files, side_files, write_json
from erniekit.export.processors import set_image_bounds, set_videos
from erniekit.local_files import read_json_object
from erniekit.models.config import ErnieConfig
from tests.unit.export.conftest import Copy, change_json, write_state

data = DataConfig.without_sources


@pytest.fixture
def nested(copy: Copy, tmp_path: Path) -> Path:
    """The files of a model in transformers' layout, with a font of the base's own."""
    source, target = copy("vl"), tmp_path / "out"
    (source / "Roboto-Regular.ttf").write_bytes(b"font")
    target.mkdir()
    carry_files(side_files([source]), target, ErnieConfig.from_dir(source), "transformers")
    return target


def test_image_bounds_of_training_in_each_form(tmp_path: Path) -> None:
    forms: tuple[tuple[str, dict[str, Any]], ...] = (
        ("preprocessor_config.json", {"min_pixels": 1, "max_pixels": 2}),
        ("preprocessor_config.json", {"size": {"shortest_edge": 1, "longest_edge": 2}}),
        ("processor_config.json", {"image_processor": {"size": {"shortest_edge": 1, "longest_edge": 2}}}),
        ("preprocessor_config.json", {"min_pixels": 1, "size": {"shortest_edge": 1, "longest_edge": 2}}),
    )
    for number, (name, content) in enumerate(forms):
        directory = tmp_path / str(number)
        directory.mkdir()
        common = {"patch_size": 14, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        target = content.get("image_processor", content)
        target |= common
        (directory / name).write_text(json.dumps(content))
        assert set_image_bounds(directory, None, None) == []
        assert len(set_image_bounds(directory, 784, 7840)) == 2
        spec = ImageSpec.from_checkpoint(directory)
        assert (spec.min_pixels, spec.max_pixels) == (784, 7840)
        assert set_image_bounds(directory, 784, 7840) == []


def test_the_processor_of_the_hub_is_what_transformers_gets(nested: Path) -> None:
    video = read_json_object(nested / "video_preprocessor_config.json")
    # Without a rate transformers takes all frames, as many as it may.
    assert (video["fps"], video["min_frames"], video["max_frames"]) == (2.0, 16, 180)
    assert video["do_sample_frames"] is True
    assert set_videos(nested, data(video_sampling="leading")) == []


def test_videos_are_read_as_in_training(nested: Path) -> None:
    options = data(
        video_fps=1.0, video_min_frames=4, video_max_frames=20, video_min_pixels=784, video_max_pixels=7840
    )
    trained = VideoSpec.from_checkpoint(nested, options)
    file = nested / "video_preprocessor_config.json"
    assert set_videos(nested, options) == [
        "video_preprocessor_config.json: fps is 1.0, as in training",
        "video_preprocessor_config.json: min_frames is 4, as in training",
        "video_preprocessor_config.json: max_frames is 20, as in training",
        "video_preprocessor_config.json: size is {'shortest_edge': 784, 'longest_edge': 7840}, as in training",
    ]
    assert VideoSpec.from_checkpoint(nested) == trained
    assert set_videos(nested, options) == []
    assert read_json_object(file)["resample"] == 3, "everything else stays"


def test_areas_that_stand_apart_in_the_base_are_changed_too(nested: Path) -> None:
    change_json(nested / "video_preprocessor_config.json", min_pixels=3136, max_pixels=31360)
    set_videos(nested, data(video_min_pixels=784, video_max_pixels=7840))
    spec = VideoSpec.from_checkpoint(nested)
    assert (spec.min_pixels, spec.max_pixels) == (784, 7840)


def test_a_base_without_a_rate_gets_that_of_training(nested: Path) -> None:
    change_json(nested / "video_preprocessor_config.json", fps=None)
    assert set_videos(nested, data()) == ["video_preprocessor_config.json: fps is 2.0, as in training"]
    assert read_json_object(nested / "video_preprocessor_config.json")["fps"] == 2.0


def test_times_are_written_on_frames_as_in_training(nested: Path) -> None:
    file = nested / "video_preprocessor_config.json"
    assert (nested / read_json_object(file)["font"]).read_bytes() == b"font", "the font of the base"
    assert set_videos(nested, data(video_timestamps=True)) == set_videos(nested, data()) == []
    (change,) = set_videos(nested, data(video_timestamps=False))
    assert change == "video_preprocessor_config.json: draw_on_frames is False, as in training"
    assert not VideoSpec.from_checkpoint(nested).timestamps
    # A base whose processor writes none, in the other file that transformers knows.
    (nested / "Roboto-Regular.ttf").unlink()
    write_json(nested / "processor_config.json", {"video_processor": read_json_object(file), "other": 1})
    file.unlink()
    assert len(set_videos(nested, data(video_timestamps=True))) == 1
    content = read_json_object(nested / "processor_config.json")
    assert content["other"] == 1
    assert content["video_processor"]["draw_on_frames"] is True
    assert (nested / content["video_processor"]["font"]).read_bytes() == FONT.read_bytes()
    assert VideoSpec.from_checkpoint(nested).timestamps


def test_what_engines_cannot_be_expressed(nested: Path, models: dict[str, Path]) -> None:
    assert set_videos(nested, data(video_sampling="random")) == [
        "data.video_sampling was random: engines take the first frame of every interval"
    ]
    assert set_videos(models["vl"], data(video_sampling="leading")) == []
    assert set_videos(models["vl"], data(video_fps=1.0, video_timestamps=False)) == [
        "data.video_fps, data.video_timestamps: no file of the hub layout can say so to engines"
    ]


def test_exports_carry_the_settings_of_their_run(copy: Copy, tmp_path: Path) -> None:
    trained = copy("vl", "trained")
    write_state(trained, str(trained), video_fps=0.5, video_max_frames=8, min_pixels=784)
    report = export_model(trained, tmp_path / "out", layout="transformers")
    assert "video_preprocessor_config.json: fps is 0.5, as in training" in report.warnings
    spec = VideoSpec.from_checkpoint(tmp_path / "out")
    assert (spec.fps, spec.min_frames, spec.max_frames) == (0.5, 8, 8)
    hub = export_model(trained, tmp_path / "hub").warnings
    assert any(note.startswith("data.video_fps, data.video_max_frames: no file") for note in hub)
