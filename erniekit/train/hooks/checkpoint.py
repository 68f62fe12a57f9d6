"""Saves checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from erniekit.optim.adamw import AdamW
from erniekit.train.checkpointer import Checkpointer
from erniekit.train.metrics import StepMetrics
from erniekit.train.metrics_writer import MetricsWriter
from erniekit.train.progress import TrainerProgress
from erniekit.train.trainer import Hook, Trainer


class CheckpointHook(Hook):
    """Saves every `every` steps (None: never), after the best evaluation so far, and at the end.

    The end may be an interrupt, or an error after which the last whole step can be saved.

    writer: flushed before each checkpoint, so that the log reaches at least as far as the checkpoint.
    """

    def __init__(self, checkpointer: Checkpointer, every: int | None, writer: MetricsWriter) -> None:
        self._checkpointer, self._every, self._writer = checkpointer, every, writer
        self._saved_at: int | None = None

    def on_train_start(self, trainer: Trainer) -> None:
        self._saved_at = trainer.progress.step

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if trainer.progress.best.is_at(trainer.progress.step):
            self._save(trainer.progress)

    def before_optimizer_step(self, optimizer: AdamW) -> dict[str, float]:
        self._checkpointer.before_update()
        return {}

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        self._checkpointer.poll()
        self._checkpointer.forget_lost_best(trainer.progress)
        step = trainer.progress.step
        if self._every and step % self._every == 0 and self._saved_at != step:
            self._save(trainer.progress)

    def on_error(self, trainer: Trainer) -> None:
        if self._saved_at is not None:
            self._writer.flush()
            step = trainer.progress.step
            self._checkpointer.save_after_error(trainer.progress, is_begun=self._saved_at == step)
            self._saved_at = step

    def on_train_end(self, trainer: Trainer) -> None:
        self._checkpointer.wait()
        if self._saved_at != trainer.progress.step or self._checkpointer.has_failed:
            self._save(trainer.progress, needed=True)
        self._checkpointer.close()

    def _save(self, progress: TrainerProgress, *, needed: bool = False) -> None:
        self._writer.flush()
        self._checkpointer.save(progress, needed=needed)
        self._saved_at = progress.step
