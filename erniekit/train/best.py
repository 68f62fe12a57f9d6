"""The best evaluation of a run so far, and how long the run waits for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from erniekit.config import EvalConfig
from erniekit.config.choices import EVAL_LOSS


@dataclass
class BestTracker:
    """What evaluations have shown. A checkpoint keeps it, so that a resumed run decides as one that never stopped.

    value: of `metric` after `step` steps, the best; None before the first. mark: the value that a later one must
    improve on for patience, by more than min_delta; waited: evaluations since that did not.
    """

    metric: str = ""
    step: int = 0
    value: float | None = None
    mark: float | None = None
    waited: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint; BestTracker(**as_dict) is equal."""
        return asdict(self)


@dataclass(frozen=True)
class EarlyStopping:
    """Judges evaluations by the figure `metric`: losses by how small they are, all others by how large.

    patience: evaluations without an improvement after which the run ends, None: it never does.
    """

    metric: str
    patience: int | None = None
    min_delta: float = 0.0

    def observe(self, best: BestTracker, step: int, scalars: Mapping[str, float]) -> bool:
        """Take an evaluation into account; whether it is the best. One whose figure is not finite never is."""
        value = scalars[self.metric]
        best.metric = self.metric
        if self._gain(value, best.mark) > self.min_delta:
            best.mark, best.waited = value, 0
        else:
            best.waited += 1
        if self._gain(value, best.value) <= 0:
            return False
        best.step, best.value = step, value
        return True

    def is_over(self, best: BestTracker) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and best.waited >= self.patience

    def describe_wait(self, best: BestTracker) -> str:
        """How long there has been no better evaluation, in words."""
        times = "1 evaluation" if best.waited == 1 else f"{best.waited} evaluations"
        since = "" if best.mark is None else f" on {best.mark:.4f}"
        least = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.metric} has not improved{since}{least} for {times}"

    def _gain(self, value: float, before: float | None) -> float:
        if not math.isfinite(value):
            return -math.inf
        if before is None:
            return math.inf
        return before - value if self.metric == EVAL_LOSS else value - before


def make_early_stopping(settings: EvalConfig) -> EarlyStopping | None:
    """What the configuration asks for; None where no best is to be kept."""
    if settings.best_metric is None:
        return None
    return EarlyStopping(settings.best_metric, settings.patience, settings.min_delta)
