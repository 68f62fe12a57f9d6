"""Logs the metrics of the steps: `log.jsonl`, trackers such as TensorBoard, and the console."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from erniekit.train.console import Console
from erniekit.train.metrics import MetricsAccumulator, StepMetrics, summarize_layers
from erniekit.train.metrics_writer import MetricsWriter, memory
from erniekit.train.trainer import Hook, Trainer


class LoggingHook(Hook):
    """Writes a line every `every` steps, at the last step, and when early stopping ends the run.

    epoch: returns the number of epochs done, as a fraction. peak_flops: FLOP/s of all devices; None if unknown, then
    MFU is not logged. router_detail: also log the metrics of every router layer.
    """

    def __init__(
        self,
        writer: MetricsWriter,
        console: Console,
        every: int,
        epoch: Callable[[], float],
        peak_flops: float | None = None,
        *,
        router_detail: bool = False,
    ) -> None:
        self._writer, self._console, self._every, self._epoch = writer, console, every, epoch
        self._peak_flops, self._router_detail = peak_flops, router_detail

    def on_train_start(self, trainer: Trainer) -> None:
        self._console.begin(trainer.progress.step, trainer.settings.total_steps)

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        trainer.progress.window.add(metrics)
        if trainer.progress.step % self._every == 0 or trainer.is_finished:
            self._log(trainer)

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if trainer.stop_reason is not None and trainer.progress.window.steps:
            self._log(trainer)

    def close(self) -> None:
        self._console.end()

    def _log(self, trainer: Trainer) -> None:
        progress = trainer.progress
        window = progress.window
        scalars = window.scalars()
        if self._peak_flops is not None:
            scalars["train/mfu"] = window.flops / window.seconds / self._peak_flops
        scalars["train/learning_rate"] = trainer.schedule.learning_rate(progress.step - 1)
        if progress.skipped_steps:
            scalars["train/skipped_steps"] = float(progress.skipped_steps)
        scalars["train/tokens_seen"] = float(progress.tokens)
        for hook in trainer.hooks:
            scalars |= hook.scalars()
        scalars = summarize_layers(scalars, detail=self._router_detail) | memory()
        shares = window.expert_shares() if self._router_detail else None
        epoch = self._epoch()
        self._writer.write(progress.step, scalars, epoch=epoch, shares=shares)
        self._console.step(progress.step, scalars, epoch)
        progress.window = MetricsAccumulator()
