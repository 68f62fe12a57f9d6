"""Checkpoints that are being written when a process fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from erniekit.checkpoint.state import newest_checkpoint, read_state
from tests.distributed.failures import fails_while_saving
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
