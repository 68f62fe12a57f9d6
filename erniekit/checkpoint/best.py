"""The best checkpoint of a run, named by `best.json` in its directory.

This is not a symbolic link, since some disks have none. The path RUN/best means the best checkpoint, although there is
no such directory entry.
"""

from __future__ import annotations

import json
from pathlib import Path

from erniekit.checkpoint.state import CHECKPOINT_NAME, checkpoint_name
from erniekit.display.text import clipped
from erniekit.errors import CheckpointError
from erniekit.local_files import replacing

BEST_FILE = "best.json"
BEST_NAME = "best"


def write_best(run: Path, step: int, metric: str, value: float) -> None:
    """Record the checkpoint after `step` steps as the best. Raises CheckpointError if it cannot be written."""
    content = {"checkpoint": checkpoint_name(step), "step": step, "metric": metric, "value": value}
    try:
        with replacing(run / BEST_FILE) as file:
            file.write(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"{run / BEST_FILE}: cannot be written: {error.strerror}") from error


def recorded_best(run: Path, metric: str) -> tuple[int, float] | None:
    """Step and value of the recorded best checkpoint of a run; None if there is none by this metric."""
    try:
        content = json.loads((run / BEST_FILE).read_text(encoding="utf-8"))
        step, value = int(content["step"]), float(content["value"])
        is_there = content["metric"] == metric and (run / checkpoint_name(step)).is_dir()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (step, value) if is_there else None


def best_checkpoint(run: Path) -> Path:
    """The best checkpoint of a run. Raises CheckpointError if none is recorded, or if it does not exist."""
    file = run / BEST_FILE
    try:
        name = str(json.loads(file.read_text(encoding="utf-8"))["checkpoint"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{run}: no best checkpoint is recorded, since {BEST_FILE} does not exist; set eval.best_metric to have one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    if not CHECKPOINT_NAME.fullmatch(name):
        raise CheckpointError(f"{file}: {clipped(name)!r} is not the name of a checkpoint of this run")
    if not (run / name).is_dir():
        raise CheckpointError(f"{run / name}: the best checkpoint according to {file}, does not exist")
    return run / name
