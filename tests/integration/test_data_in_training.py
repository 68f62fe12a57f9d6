"""Every kind of data trains: mixed and streamed sources resume bit by bit; tools and videos become rows."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from erniekit.errors import ErnieKitError
from erniekit.train.dry_run import dry_run_training
from erniekit.train.run import run_training
from tests.integration.runs import assert_same_run, copy_at
from tests.integration.training_setup import chats, losses, make_config, read_log, write_chats
from tests.unit.data.helpers import SHARED

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two sources of different formats, one with images."""
    directory = tmp_path_factory.mktemp("sources")
    one = write_chats(directory / "one.jsonl", chats(14))
    pairs = [{"query": f"Say {number}.", "response": f"It is {number}."} for number in range(9)]
    (directory / "two").mkdir()
    (directory / "two" / "a.json").write_text(json.dumps(pairs))
    return [{"path": str(one), "weight": 2.0}, {"path": str(directory / "two"), "weight": 1.0}]


@pytest.mark.parametrize(
    "settings",
    [
        {"data__mix": "weighted", "train__epochs": 3},
        {"data__mix": "interleave", "data__stop": "all_exhausted", "train__epochs": 2},
        {"data__mix": "weighted", "data__streaming": True, "data__buffer": 10, "train__max_steps": 9},
    ],
    ids=["weighted", "interleave", "streaming"],
)
def test_a_mixture_resumes_bit_by_bit(
    tmp_path: Path, model: Path, sources: list[dict[str, Any]], settings: dict[str, Any]
) -> None:
    mixed = sources if settings["data__mix"] == "weighted" else [source["path"] for source in sources]
    settings = {**settings, "data__train": mixed, "checkpoint__save_every": 1, "checkpoint__keep": 99}
    whole = tmp_path / "whole"
    assert run_training(make_config(whole, model, Path("-"), **settings)) == 0
    steps = [step for step, *_ in losses(whole)]
    assert len(steps) >= 6
    for step, workers in ((2, 0), (steps[-2], 2)):
        part = tmp_path / f"part{step}"
        copy_at(whole, part, step)
        again = make_config(part, model, Path("-"), **settings, data__workers=workers)
        assert run_training(again, resume=True) == 0
        assert_same_run(whole, part)


def test_unused_positions_are_reported_and_logged(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_training(make_config(run, model, data, train__max_steps=2))
    assert "% unused (padding each sample would leave " in capsys.readouterr().out
    logged = [line["data/unused_positions"] for line in read_log(run) if "train/loss" in line]
    assert len(logged) == 2
    assert all(0 <= share < 0.5 for share in logged)


def test_a_second_run_finds_the_samples_encoded(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    printed = []
    for number in range(2):
        config = make_config(tmp_path / f"run{number}", model, data, data__cache_dir=str(cache))
        dry_run_training(config)
        printed.append(capsys.readouterr().out)
    assert "(encoded before)" not in printed[0]
    assert "(encoded before)" in printed[1]
    shutil.rmtree(cache)
    dry_run_training(
        make_config(tmp_path / "run2", model, data, data__cache_dir=str(cache), data__cache=False),
    )
    assert not cache.exists()


def test_tools_videos_and_pairs_are_trained_on(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    files = ["tools.jsonl", "video.jsonl", "preference.jsonl", "sharegpt.json", "pretrain.jsonl"]
    config = make_config(
        run,
        model,
        Path("-"),
        data__train=[str(SAMPLES / name) for name in files],
        data__max_length=4096,
        data__video_max_frames=4,
        data__video_min_frames=2,
        data__video_max_pixels=6272,
        data__video_min_pixels=784,
        data__max_pixels=6272,
        train__max_steps=2,
    )
    assert run_training(config) == 0
    printed = capsys.readouterr().out
    assert "videos," in printed
    assert "tool calls" in printed
    assert "preference pairs, trained on the chosen answers only" in printed
    assert all(math.isfinite(loss) for _, loss, *_ in losses(run))


def test_a_stream_names_a_wrong_sample(tmp_path: Path, model: Path, data: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(data.read_text() + '{"messages": 3}\n')
    settings = {"data__streaming": True, "data__buffer": 17, "train__max_steps": 1}
    with pytest.raises(ErnieKitError, match=r"broken\.jsonl:17: "):
        run_training(make_config(tmp_path / "run", model, broken, **settings))
    skipping = make_config(tmp_path / "skip", model, broken, **settings, data__on_error="skip")
    assert run_training(skipping) == 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/testdata")
def test_all_of_the_demo_data_in_one_run(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six files of six kinds, without options about their formats."""
    files = sorted(str(path) for path in (SHARED / "testdata").glob("*.json"))
    assert len(files) == 6
    config = make_config(
        tmp_path / "run",
        model,
        Path("-"),
        data__train=files,
        data__max_length=16384,
        model__max_position_embeddings=16384,
        data__on_error="skip",
        data__max_errors=1,
        data__video_max_frames=4,
        data__video_max_pixels=50176,
        data__video_min_pixels=784,
        data__max_pixels=50176,
    )
    dry_run_training(config)
    printed = capsys.readouterr().out
    assert "training data: 1,698 samples" in printed
    assert "1 sample skipped (missing video: 1)" in printed
    assert "211 tool calls" in printed
    assert "300 preference pairs" in printed
    unused = float(printed.split("% unused")[0].rsplit(" ", 1)[1])
    assert unused < 3
