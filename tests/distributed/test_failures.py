"""Checkpoints that are being written when a process fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from erniekit.checkpoint.state import newest_checkpoint, read_state
from erniekit.distributed.watchdog import PEER_LOST
from tests.distributed.failures import fails_to_read, fails_while_saving
from tests.distributed.layouts import trainings
from tests.distributed.processes import run, run_to_end
from tests.distributed.settings import vl_setting
from tests.integration.training_setup import read_log

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("setting")
    return vl_setting(directory) | {"train.max_steps": 3, "checkpoint.save_every": 1, "checkpoint.keep": 9}


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


@pytest.mark.parametrize("what", ["row", "evaluation"])
def test_all_processes_save_when_one_cannot_read_its_data(
    setting: dict[str, Any], tmp_path: Path, what: str
) -> None:
    """Nothing else is saved before the end; the resumed run begins with the step, or the evaluation, that failed."""
    settings = setting | {"train.output_dir": str(tmp_path / "run"), "parallel.shard": "optimizer"}
    settings |= {"checkpoint.save_every": None, "data.eval": setting["data.train"], "train.eval_every": 2}
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
