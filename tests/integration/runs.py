"""Runs that end at a step, and the comparison of two runs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint import state
from erniekit.checkpoint.state import newest_checkpoint
from erniekit.train.trainer import Trainer
from tests.checkpoints import tensors
from tests.integration.training_setup import losses


def final(run: Path) -> Path:
    """The newest checkpoint of a run that has one."""
    found = newest_checkpoint(run)
    assert found is not None
    return found


def copy_at(source: Path, target: Path, step: int) -> None:
    """The run directory as a machine that failed some time after `step` leaves it."""
    shutil.copytree(source, target)
    for checkpoint in target.glob("checkpoint-*"):
        if int(checkpoint.name[-6:]) > step:
            shutil.rmtree(checkpoint)


def saved_losses(run: Path) -> list[float]:
    """The losses that the newest checkpoint keeps for the search for spikes."""
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    found = state.read_state(checkpoint).losses
    assert found
    return found


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    assert saved_losses(one) == saved_losses(other)
    expected, found = tensors(one), tensors(other)
    assert list(expected) == list(found)
    assert [name for name in expected if not np.array_equal(expected[name], found[name])] == []


def at_step_3(monkeypatch: pytest.MonkeyPatch, call: Callable[[], None]) -> None:
    """Call this before the third step."""
    at_step(2, monkeypatch, call)


def at_step(number: int, monkeypatch: pytest.MonkeyPatch, call: Callable[[], None]) -> None:
    """Call this after so many steps."""
    step = Trainer.train_step

    def train_step(trainer: Trainer) -> Any:
        if trainer.progress.step == number:
            call()
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", train_step)
