"""The record of a run's best checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.checkpoint.best import BEST_FILE, best_checkpoint, recorded_best, write_best
from erniekit.errors import CheckpointError


def test_the_best_checkpoint_is_the_recorded_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-000007").mkdir()
    write_best(tmp_path, 7, "eval/loss", 0.5)
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoint-000007"
    assert recorded_best(tmp_path, "eval/loss") == (7, 0.5)
    assert recorded_best(tmp_path, "eval/exact_match") is None


@pytest.mark.parametrize(
    "content",
    [{"checkpoint": name} for name in ("", ".", "..", "../other", "/", "checkpoint-000007/..", None, 7)]
    + [{}, [], "x"],
)
def test_a_record_that_names_no_checkpoint_is_an_error(tmp_path: Path, content: Any) -> None:
    """With other names, the run itself or another directory would be taken."""
    run = tmp_path / "run"
    (run / "checkpoint-000007").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (run / BEST_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=BEST_FILE):
        best_checkpoint(run)


def test_a_recorded_checkpoint_that_is_gone_is_an_error(tmp_path: Path) -> None:
    write_best(tmp_path, 7, "eval/loss", 0.5)
    with pytest.raises(CheckpointError, match="checkpoint-000007: the best checkpoint"):
        best_checkpoint(tmp_path)
    (tmp_path / BEST_FILE).unlink()
    with pytest.raises(CheckpointError, match="no best checkpoint is recorded"):
        best_checkpoint(tmp_path)
