"""Streams on several processes: each reads its share, and the training goes on exactly where it stood."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.layouts import trainings
from tests.distributed.processes import run, run_to_end
from tests.distributed.settings import assert_same, vl_setting
from tests.integration.training_setup import chats, write_chats

STEPS = 4
# Processes, those that share the experts and each row: two with rows of their own in each.
LAYOUTS = {"DP2": (2, 1, 1), "EP2": (2, 2, 1), "CP2-DP2": (4, 2, 2)}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two sources by weight, in buffers that end within steps, over several passes."""
    directory = tmp_path_factory.mktemp("setting")
    setting = vl_setting(directory)
    videos = setting["data.train"][1]
    chatting = str(write_chats(directory / "few.jsonl", chats(16)))
    return setting | {
        "data.train": [{"path": chatting, "weight": 5.0}, {"path": videos, "weight": 1.0}],
        "data.mix": "weighted",
        "data.streaming": True,
        "data.buffer": 13,
        "train.max_steps": STEPS,
        "checkpoint.save_every": 1,
        "checkpoint.keep": 9,
    }


def laid_out(setting: dict[str, Any], run: Path, expert: int, context: int) -> dict[str, Any]:
    return setting | {
        "train.output_dir": str(run),
        "parallel.expert": expert,
        "parallel.context": context,
    }


@pytest.fixture(scope="module")
def runs(setting: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    for world in (2, 4):
        chosen = {name: dims for name, (count, *dims) in LAYOUTS.items() if count == world}
        run(
            world,
            trainings,
            world,
            [laid_out(setting, directory / name, *dims) for name, dims in chosen.items()],
        )
    return directory


def copy_at(run: Path, part: Path, step: int) -> Path:
    """A run as it stood after a step."""
    shutil.copytree(run, part)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(part / f"checkpoint-{later:06d}")
    return part


@pytest.mark.parametrize("dims", ["EP2", "CP2-DP2"])
def test_as_many_processes_with_rows_of_their_own_train_the_same(runs: Path, dims: str) -> None:
    assert_same(runs / "DP2", runs / dims, STEPS)


@pytest.mark.parametrize(("before", "after", "step"), [("DP2", "CP2-DP2", 2), ("CP2-DP2", "EP2", 3)])
def test_a_stream_goes_on_where_each_process_stood(
    runs: Path, setting: dict[str, Any], tmp_path: Path, before: str, after: str, step: int
) -> None:
    part = copy_at(runs / before, tmp_path / "run", step)
    world, *dims = LAYOUTS[after]
    run(world, trainings, world, [laid_out(setting, part, *dims)], True)
    assert_same(runs / "DP2", part, STEPS)


def test_another_number_is_refused_before_the_model_is_loaded(
    runs: Path, setting: dict[str, Any], tmp_path: Path
) -> None:
    part = copy_at(runs / "DP2", tmp_path / "run", 2)
    for rank in run_to_end(2, trainings, 2, [laid_out(setting, part, 1, 2)], True):
        assert rank.status == 1
        assert "cannot continue: the number of processes that share the stream" in rank.output
        assert "was 2 and is now 1" in rank.output
        assert "model: loading" not in rank.output
