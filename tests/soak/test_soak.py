"""Runs that are killed at random moments give what runs give that nobody killed. `make soak` kills more often."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from erniekit.config import dump_config
from tests.checkpoints import tensors
from tests.integration.training_setup import chats, losses, make_config, make_model, write_chats
from tests.soak.soak import Soak, kill_and_resume, train


class Method(NamedTuple):
    """Settings of a run, and its number of processes."""

    settings: dict[str, Any]
    processes: int = 1


METHODS = {
    "full": Method({}),
    "lora": Method({"lora__enabled": True, "lora__dropout": 0.2, "checkpoint__background": False}),
    "sharded": Method({"parallel__shard": "parameters", "train__recompute": True}, processes=2),
}


def soak(directory: Path, method: str, kills: int, seed: int) -> Soak:
    """Kill a run, and compare it with one that is not killed."""
    model = make_model(directory / "model", "tiny-moe")
    data = write_chats(directory / "chats.jsonl", chats(24, images=False))
    settings = {
        **METHODS[method].settings,
        # A kill may come several steps after the one that it waits for.
        "train__max_steps": 4 + 8 * kills,
        "checkpoint__save_every": 1,
        "data__cache_dir": str(directory / "cache"),
    }
    whole, killed = (_write_config(directory / name, model, data, settings) for name in ("whole", "killed"))
    train(whole, METHODS[method].processes)
    done = kill_and_resume(killed, kills, seed, METHODS[method].processes)
    expected, found = tensors(directory / "whole"), tensors(directory / "killed")
    assert list(expected) == list(found)
    assert all((expected[name] == found[name]).all() for name in expected)
    assert losses(directory / "whole") == losses(directory / "killed")
    assert not list((directory / "killed").glob(".checkpoint-*"))
    return done


def _write_config(run: Path, model: Path, data: Path, settings: dict[str, Any]) -> Path:
    file = run.with_suffix(".yaml")
    file.write_text(dump_config(make_config(run, model, data, **settings)), encoding="utf-8")
    return file


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_like_one_that_nobody_killed(tmp_path: Path, method: str) -> None:
    # Two processes take longer to start. A run that ends before its kill is not killed.
    assert soak(tmp_path, method, 2 if METHODS[method].processes == 1 else 1, seed=1).attempts >= 1
