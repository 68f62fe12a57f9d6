"""Saves checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from erniekit.train.metrics import StepMetrics
from erniekit.train.metrics_writer import MetricsWriter
from erniekit.train.progress import TrainerProgress
from erniekit.train.trainer import Hook, Trainer


class CheckpointHook(Hook):
    """Saves every `every` steps (None: never), after the best evaluation so far, and at the end or an interrupt.

    writer: flushed before each checkpoint, so that the log reaches at least as far as the checkpoint.
    """

    def __init__(
        self, save: Callable[[TrainerProgress], None], every: int | None, writer: MetricsWriter
    ) -> None:
        self._save_progress, self._every, self._writer = save, every, writer
        self._saved_at = 0

    def on_train_start(self, trainer: Trainer) -> None:
        self._saved_at = trainer.progress.step

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if trainer.progress.best.is_at(trainer.progress.step):
            self._save(trainer.progress)

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        if self._every and trainer.progress.step % self._every == 0:
            self._save_once(trainer.progress)

    def on_train_end(self, trainer: Trainer) -> None:
        self._save_once(trainer.progress)

    def _save_once(self, progress: TrainerProgress) -> None:
        if self._saved_at != progress.step:
            self._save(progress)

    def _save(self, progress: TrainerProgress) -> None:
        self._writer.flush()
        self._save_progress(progress)
        self._saved_at = progress.step
