"""Tracks the best evaluation, and ends training when evaluations no longer improve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from erniekit.config.choices import EVAL_LOSS
from erniekit.train.progress import BestTracker
from erniekit.train.trainer import Hook, Trainer


@dataclass(frozen=True)
class EarlyStoppingHook(Hook):
    """Compares evaluations by `metric`: a lower loss is better; for all other metrics, a higher value.

    patience: number of evaluations without an improvement after which training ends; None: never. min_delta: smallest
    change that counts as an improvement, not inclusive. data: digest of the data that is evaluated.
    """

    metric: str
    patience: int | None = None
    min_delta: float = 0.0
    data: str = ""

    def on_train_start(self, trainer: Trainer) -> None:
        self._stop_if_over(trainer)

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self.observe(trainer.progress.best, trainer.progress.step, metrics)
        self._stop_if_over(trainer)

    def observe(self, best: BestTracker, step: int, metrics: Mapping[str, float]) -> bool:
        """Update `best` with an evaluation; returns whether it is the best. A value that is not finite never is."""
        value = metrics[self.metric]
        best.metric, best.data = self.metric, self.data
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
        """A description of the evaluations without an improvement."""
        times = "1 evaluation" if best.waited == 1 else f"{best.waited} evaluations"
        since = "" if best.mark is None else f" on {best.mark:.4f}"
        least = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.metric} has not improved{since}{least} for {times}"

    def _stop_if_over(self, trainer: Trainer) -> None:
        best = trainer.progress.best
        trainer.stop_reason = self.describe_wait(best) if self.is_over(best) else None

    def _gain(self, value: float, before: float | None) -> float:
        if not math.isfinite(value):
            return -math.inf
        if before is None:
            return math.inf
        return before - value if self.metric == EVAL_LOSS else value - before
