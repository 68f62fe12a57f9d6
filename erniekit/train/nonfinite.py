"""Steps with a loss or a gradient that is not a finite number: the run stops before the update, or skips the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from erniekit.config.choices import OnNonFinite
from erniekit.data.load.batch import PackedBatch
from erniekit.display.text import listed
from erniekit.distributed.context import DistributedContext
from erniekit.errors import ErnieKitError
from erniekit.objectives.totals import is_filler
from erniekit.optim.adamw import AdamW
from erniekit.train.saved_rows import SavedRows, save_rows, step_directory

NONFINITE_DIR = "nonfinite"
MAX_SKIPPED_IN_ROW = 10
"""The run stops after this many skipped steps in a row, since it will not recover."""
_MAX_SAVED = 10
_NAMED_SAMPLES, _NAMED_PARAMETERS = 8, 3


class NonFiniteError(ErnieKitError):
    """A loss or a gradient that ends the run. The weights may be the reason: they must not replace earlier ones."""


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of a step before its update.

    rows: of this process; losses: the loss sum of each; loss_sum: over the rows of all processes; gradient_norm: of the
    whole model. The last two are the same on all processes.
    """

    step: int
    rows: Sequence[PackedBatch]
    losses: Sequence[float]
    loss_sum: float
    gradient_norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the step can be applied."""
        return math.isfinite(self.loss_sum) and math.isfinite(self.gradient_norm)


@dataclass
class NonFinitePolicy:
    """Decides whether a step is applied, from numbers that all processes have read anyway.

    mode: train.on_nonfinite. directory: for the rows of up to 10 steps, saved for `erniekit replay`; None: not saved.
    dist: the processes of the run, None for one.
    """

    mode: OnNonFinite = "stop"
    directory: Path | None = None
    log: Callable[[str], None] = print
    dist: DistributedContext | None = None
    _saved: int = field(default=0, init=False)

    def accepts(self, numbers: StepNumbers, optimizer: AdamW, skipped_in_row: int) -> bool:
        """Whether the step is applied. False: it is skipped. All processes call this together.

        skipped_in_row: steps skipped just before this one. Raises ErnieKitError to stop the run.
        """
        if numbers.is_finite:
            return True
        problem, rows = self._problem(numbers, optimizer)
        where = self._save(numbers, rows, problem)
        if self.mode == "skip" and skipped_in_row + 1 < MAX_SKIPPED_IN_ROW:
            self.log(f"step {numbers.step} is skipped: {problem}{where}")
            return False
        skip = "; train.on_nonfinite: skip leaves out single steps"
        if self.mode == "skip":
            skip = f"; it is step {skipped_in_row + 1} in a row that is not finite"
        text = (
            f"step {numbers.step}: {problem}. The step was not applied and earlier checkpoints are untouched. Look at "
            f"these samples, or lower optimizer.learning_rate or optimizer.max_grad_norm{skip}{where}"
        )
        raise NonFiniteError(text)

    def _problem(self, numbers: StepNumbers, optimizer: AdamW) -> tuple[str, list[int]]:
        """A description of what is not finite, and the indices of this process's rows that may be the cause."""
        rows = [number for number, row in enumerate(numbers.rows) if not is_filler(row)]
        if not math.isfinite(numbers.loss_sum):
            rows = [number for number in rows if not math.isfinite(numbers.losses[number])]
            return f"the loss is not a finite number in the samples {self._samples(numbers, rows)}", rows
        names = list(
            dict.fromkeys(n for found in self._gather(optimizer.nonfinite_gradients()) for n in found)
        )
        place = f", in the gradients of {listed(names, _NAMED_PARAMETERS)}," if names else ""
        samples = self._samples(numbers, rows)
        return f"the gradient norm is {numbers.gradient_norm}{place} with the samples {samples}", rows

    def _samples(self, numbers: StepNumbers, rows: Sequence[int]) -> str:
        own = [name for number in rows for name in numbers.rows[number].sample_ids]
        return listed(
            list(dict.fromkeys(name for names in self._gather(own) for name in names)), _NAMED_SAMPLES
        )

    def _save(self, numbers: StepNumbers, rows: Sequence[int], problem: str) -> str:
        """Save rows of this process. Returns a hint with the command that computes them again, or the error."""
        if self.directory is None or self._saved >= _MAX_SAVED:
            return ""
        self._saved += 1
        directory, failure = step_directory(self.directory, numbers.step), ""
        if rows:
            saved = SavedRows(numbers.step, problem, [numbers.rows[number] for number in rows])
            try:
                losses = [numbers.losses[number] for number in rows]
                save_rows(directory, saved, losses, 0 if self.dist is None else self.dist.mesh.rank)
            except OSError as error:
                failure = error.strerror or str(error)
        failure = next((text for texts in self._gather([failure]) for text in texts if text), "")
        if failure:
            return f".\n  {directory}: the rows cannot be saved: {failure}"
        return f".\n  Compute its rows again with: erniekit replay {directory}"

    def _gather(self, values: list[str]) -> list[list[str]]:
        return [values] if self.dist is None else self.dist.all_gather_object(values)
