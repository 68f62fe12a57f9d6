"""Writes the report of a run."""

from __future__ import annotations

from erniekit.errors import ErnieKitError
from erniekit.train.console import Console
from erniekit.train.metrics_writer import MetricsWriter
from erniekit.train.report import ReportParts, RunStatus, write_report
from erniekit.train.trainer import Hook, Trainer


class ReportHook(Hook):
    """Writes report.html at the end and after an interrupt, in the main process."""

    def __init__(self, parts: ReportParts, writer: MetricsWriter, console: Console) -> None:
        self._parts, self._writer, self._console = parts, writer, console

    def on_train_end(self, trainer: Trainer) -> None:
        self._writer.flush()
        progress, total = trainer.progress, trainer.settings.total_steps
        interrupted = trainer.is_interrupted and not trainer.is_finished
        state = "finished"
        if interrupted:
            state = f"interrupted after step {progress.step:,} of {total:,}"
        elif trainer.stop_reason is not None:
            state = f"stopped early: {trainer.stop_reason}"
        status = RunStatus(
            step=progress.step,
            total_steps=total,
            tokens=progress.tokens,
            state=state,
            resumes=interrupted,
            has_best=progress.best.value is not None,
        )
        try:
            write_report(self._parts, status)
        except (
            ErnieKitError,
            OSError,
            ValueError,
        ) as error:  # the model is saved: a full disk must not fail the run
            self._console.log(f"note: the report was not written: {error}")
