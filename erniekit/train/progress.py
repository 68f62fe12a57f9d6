"""The progress of a run: the part of a training checkpoint that changes with every step."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from erniekit.errors import CheckpointError
from erniekit.train.metrics import MetricsAccumulator

T = TypeVar("T")


def restored(kind: type[T], values: dict[str, Any], where: Path) -> T:
    """Restore a `MetricsAccumulator` or `BestTracker` from a checkpoint. Raises CheckpointError for invalid values."""
    try:
        kind(**values)
        found: T = _ADAPTERS[kind].validate_json(json.dumps(values), strict=True)
        return found
    except (TypeError, ValidationError):
        raise CheckpointError(
            f"{where}: its {_KEYS[kind]} is not valid; use an older checkpoint of the run"
        ) from None


@dataclass
class BestTracker:
    """The best evaluation so far. It is saved in checkpoints, so that resuming does not change early stopping.

    data: digest of the data that was evaluated, "" in checkpoints of versions before it existed. value: the best value
    of `metric`, after `step` steps; None before the first evaluation. mark: the value that an evaluation must exceed by
    more than min_delta to reset the patience; waited: number of evaluations since then.
    """

    metric: str = ""
    data: str = ""
    step: int = 0
    value: float | None = None
    mark: float | None = None
    waited: int = 0

    def is_at(self, step: int) -> bool:
        """Whether the evaluation after `step` steps is the best so far."""
        return self.value is not None and self.step == step

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint; BestTracker(**as_dict) is equal."""
        return asdict(self)


@dataclass
class TrainerProgress:
    """Optimizer steps done, rows drawn, tokens of all kinds and trained tokens, over all processes.

    skipped_steps: steps without an update (train.on_nonfinite); skipped_in_row: those just before the next step.
    window: metrics of the steps that are not logged yet; best: the best evaluation so far; losses: of the last steps
    that were not skipped, as many as `LossSpikeHook` compares; pending_evaluation: an evaluation after this step was
    interrupted or has failed.
    """

    step: int = 0
    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    skipped_steps: int = 0
    skipped_in_row: int = 0
    window: MetricsAccumulator = field(default_factory=MetricsAccumulator)
    best: BestTracker = field(default_factory=BestTracker)
    losses: list[float] = field(default_factory=list)
    pending_evaluation: bool = False


def restored_losses(values: list[Any], where: Path) -> list[float]:
    """`TrainerProgress.losses` from a checkpoint. Raises CheckpointError for other values."""
    if not all(type(value) is float and math.isfinite(value) for value in values):
        raise CheckpointError(f"{where}: its losses are not valid; use an older checkpoint of the run")
    return values


_KEYS: dict[type, str] = {MetricsAccumulator: "window", BestTracker: "best"}
_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in _KEYS}
