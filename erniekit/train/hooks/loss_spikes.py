"""Reports steps with a loss far above those before, with the samples to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from erniekit.distributed.context import DistributedContext
from erniekit.train.metrics import RowLoss, StepMetrics
from erniekit.train.metrics_writer import MetricsWriter
from erniekit.train.trainer import Hook, Trainer

_WINDOW, _LEAST = 100, 20
# The last two losses, each with the window before it.
_KEPT = _WINDOW + 2
# In standard deviations of normal noise, which are 1.4826 times the median absolute deviation; noise below a share of
# the median is taken as that share.
_DEVIATIONS, _SCALE, _SHARE = 8.0, 1.4826, 0.03
_NAMED_SAMPLES = 8


class LossSpikeHook(Hook):
    """Logs the first of several such steps in a row, on the console and in `log.jsonl`, and never stops a run.

    A loss is a spike if it is above every loss of the last 100 steps, and above their median by 8 standard deviations,
    estimated from the median absolute deviation, and by a quarter of the median. So a row that is hard in every epoch
    is reported once. Losses are kept in `TrainerProgress.losses`, so that a resumed run reports what a run that never
    stopped would. dist: the processes of the run, None for one: all of them see the same loss.
    """

    def __init__(
        self, writer: MetricsWriter, log: Callable[[str], None], dist: DistributedContext | None = None
    ) -> None:
        self._writer, self._log, self._dist = writer, log, dist

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        if metrics.is_skipped:
            return
        losses = trainer.progress.losses
        losses.append(metrics.loss)
        del losses[:-_KEPT]
        if is_spike(losses) and not is_spike(losses[:-1]):
            self._report(trainer.progress.step, metrics, float(np.median(losses[-1 - _WINDOW : -1])))

    def _report(self, step: int, metrics: StepMetrics, median: float) -> None:
        """Log the samples of the row with the largest mean loss over all processes. All of them call this."""
        largest = max(metrics.rows, default=RowLoss(-math.inf, ()))
        own: list[Any] = [largest.loss, list(largest.sample_ids)]
        loss, samples = max([own] if self._dist is None else self._dist.all_gather_object(own))
        names = ", ".join(samples[:_NAMED_SAMPLES])
        more = f" and {len(samples) - _NAMED_SAMPLES} more" if len(samples) > _NAMED_SAMPLES else ""
        self._log(
            f"step {step}: loss {metrics.loss:.4f} is far above the median of the steps before, {median:.4f}; the row "
            f"with the largest loss, {loss:.4f}, has the samples {names}{more}"
        )
        self._writer.event(step, "loss_spike", loss=metrics.loss, median=median, samples=samples)


def is_spike(losses: Sequence[float]) -> bool:
    """Whether the last of these losses is a spike after those before it."""
    return bool(losses) and losses[-1] > spike_limit(np.array(losses[-1 - _WINDOW : -1]))


def spike_limit(losses: np.ndarray) -> float:
    """Above this a loss is a spike, given those of the steps before; infinity while they are too few."""
    if len(losses) < _LEAST:
        return float("inf")
    median = float(np.median(losses))
    deviation = _SCALE * float(np.median(np.abs(losses - median)))
    return max(float(losses.max()), median + _DEVIATIONS * max(deviation, _SHARE * abs(median)))
