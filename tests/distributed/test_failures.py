"""Checkpoints that are being written when a process fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from erniekit.checkpoint.state import newest_checkpoint, read_state
from erniekit.distributed.watchdog import PEER_LOST
from tests.distributed.failures import fails_to_read, fails_while_saving, saves_what_is_gathered_anyway
from tests.distributed.layouts import trainings
from tests.distributed.processes import run, run_to_end
from tests.distributed.settings import vl_setting
from tests.integration.training_setup import read_log

pytestmark = pytest.mark.slow
SHARDED = {"parallel.shard": "parameters", "train.recompute": True}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("setting")
    return vl_setting(directory) | {"train.max_steps": 3, "checkpoint.save_every": 1, "checkpoint.keep": 9}


@pytest.fixture(scope="module")
def waiting(setting: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes with sharded weights, which waits for each save."""
    directory = tmp_path_factory.mktemp("waiting") / "run"
    run(
        2,
        trainings,
        2,
        [setting | {"train.output_dir": str(directory), "checkpoint.background": False} | SHARDED],
    )
    return directory


def checkpoints(directory: Path) -> list[Path]:
    """The three checkpoints of a run."""
    found = sorted(directory.glob("checkpoint-*"))
    assert len(found) == 3
    return found


def test_a_checkpoint_in_the_background_survives_an_error_of_another_process(
    setting: dict[str, Any], tmp_path: Path
) -> None:
    settings = setting | {"train.output_dir": str(tmp_path / "run"), "parallel.shard": "optimizer"}
    first, second = run_to_end(2, fails_while_saving, settings, "error")
    assert (first.status, second.status) == (1, 1), first.output + second.output
    assert "error: the sample cannot be read" in second.output
    assert "finishing the checkpoint of step 2, which is being written" in first.output
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and read_state(newest).step == 2, first.output
    assert not list(newest.glob("part-*"))
    assert not list((tmp_path / "run").glob(".checkpoint-*"))
    run(2, trainings, 2, [settings], True)
    assert [line["step"] for line in read_log(tmp_path / "run")] == [1, 2, 3]


def test_the_part_of_a_killed_process_is_not_waited_for(setting: dict[str, Any], tmp_path: Path) -> None:
    settings = setting | {"train.output_dir": str(tmp_path / "run"), "parallel.shard": "optimizer"}
    first, second = run_to_end(2, fails_while_saving, settings, "killed")
    assert (first.status, second.status) == (1, -9), first.output + second.output
    lost = "the checkpoint of step 2 is lost: rank 1 ended before it had written its part"
    assert lost in first.output
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and read_state(newest).step == 1


@pytest.mark.parametrize("is_late", [False, True], ids=["forward", "update"])
def test_the_forward_pass_gathers_sharded_weights_for_a_save(
    setting: dict[str, Any], waiting: Path, tmp_path: Path, is_late: bool
) -> None:
    """Where an update comes first, or none follows, the weights are gathered before."""
    settings = setting | {"train.output_dir": str(tmp_path / "run")} | SHARDED
    for result in run(2, saves_what_is_gathered_anyway, settings, is_late):
        assert result["gathered"] == [0, 1] * (1 + is_late)
    names = [sorted(file.name for file in path.glob("*.safetensors")) for path in checkpoints(waiting)]
    for before, after, files in zip(checkpoints(waiting), checkpoints(tmp_path / "run"), names, strict=True):
        for name in files:
            assert (after / name).read_bytes() == (before / name).read_bytes(), after / name


def test_weights_that_were_not_gathered_are_lost_with_a_process(
    setting: dict[str, Any], tmp_path: Path
) -> None:
    settings = setting | {"train.output_dir": str(tmp_path / "run")} | SHARDED
    first, second = run_to_end(2, fails_while_saving, settings, "error")
    assert (first.status, second.status) == (1, 1), first.output + second.output
    lost = "cannot be written: training ended before all processes had passed on their weights"
    assert f"the checkpoint of step 2 is lost: {tmp_path / 'run'}" in first.output
    assert lost in first.output
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and read_state(newest).step == 1
    assert not list((tmp_path / "run").glob(".checkpoint-*"))


@pytest.mark.parametrize(
    ("what", "every"), [("row", None), ("row", 2), ("evaluation", None)], ids=["row", "awaited", "evaluation"]
)
def test_all_processes_save_when_one_cannot_read_its_data(
    setting: dict[str, Any], tmp_path: Path, what: str, every: int | None
) -> None:
    """The resumed run begins with the step, or the evaluation, that failed. Nothing is saved before the end, or, with
    `every`, a save has begun that awaits the next forward pass."""
    settings = setting | {"train.output_dir": str(tmp_path / "run"), "parallel.shard": "optimizer"}
    settings |= SHARDED if every else {}
    settings |= {"checkpoint.save_every": every, "data.eval": setting["data.train"], "train.eval_every": 2}
    for rank, ended in enumerate(run_to_end(2, fails_to_read, settings, what)):
        assert ended.status == 1, ended.output
        error = "the sample cannot be read" if rank else f"{PEER_LOST}: another rank has failed"
        assert f"error: {error}" in ended.output
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and read_state(newest).step == 2
    assert read_state(newest).pending_evaluation == (what == "evaluation")
    run(2, trainings, 2, [settings], True)
    lines = read_log(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3]
    assert [line["step"] for line in lines if "eval/loss" in line] == [2, 3]
