"""Which checkpoint of a run is the best: `best.json` in the run's directory names it.

A file, since not every disk has symbolic links. The path RUN/best stands for the checkpoint, though no such entry is
there.
"""

from __future__ import annotations

import json
from pathlib import Path

from erniekit.checkpoint.state import checkpoint_name
from erniekit.errors import CheckpointError

BEST_FILE = "best.json"
BEST_NAME = "best"


def write_best(run: Path, step: int, metric: str, value: float) -> None:
    """Say that the checkpoint after `step` steps is the best. Raises CheckpointError where the disk refuses."""
    content = {"checkpoint": checkpoint_name(step), "step": step, "metric": metric, "value": value}
    aside = run / f".{BEST_FILE}.tmp"
    try:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        aside.replace(run / BEST_FILE)
    except OSError as error:
        raise CheckpointError(f"{run / BEST_FILE}: cannot be written: {error.strerror}") from error


def best_checkpoint(run: Path) -> Path:
    """The best checkpoint of a run. Raises CheckpointError where none is known, or it is not there."""
    file = run / BEST_FILE
    try:
        name = str(json.loads(file.read_text(encoding="utf-8"))["checkpoint"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{run}: no best checkpoint is known, as {BEST_FILE} is not there; runs with eval.best_metric have one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    if not (run / name).is_dir():
        raise CheckpointError(f"{run / name}: the best checkpoint, as {file} says, is not there")
    return run / name
