"""The trainer: rows -> forward and backward -> reduce -> clip -> optimizer -> schedule -> hooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import nn

from erniekit.data.load.batch import PackedBatch
from erniekit.distributed.context import DistributedContext
from erniekit.distributed.failures import error_of_all, is_of_all, original_error
from erniekit.distributed.skipped_samples import SkippedSampleSync
from erniekit.errors import DataError, ErnieKitError
from erniekit.interrupt import InterruptGuard
from erniekit.objectives.objective import Objective
from erniekit.objectives.totals import MODALITIES, StepTotals, count_pairs, count_rows, is_filler
from erniekit.optim.adamw import AdamW
from erniekit.optim.clip import clip_scale, gradient_norm
from erniekit.optim.schedule import Schedule
from erniekit.parallel.data_parallel import GradientReducer
from erniekit.train.metrics import StepMetrics
from erniekit.train.nonfinite import NonFiniteError, NonFinitePolicy, StepNumbers
from erniekit.train.out_of_memory import naming_rows
from erniekit.train.progress import TrainerProgress
from erniekit.train.step_sums import RowResult, row_losses, sum_step
from erniekit.upload import AsyncUpload

_MAX_EMPTY_STEPS = 1000


class RowSource(Protocol):
    """The source of the rows: `erniekit.data.load.loader.RowLoader`."""

    @property
    def is_over(self) -> bool:
        """Whether all rows of all epochs are drawn; always False if the run has a number of steps instead of epochs."""

    def next_row(self) -> PackedBatch:
        """The next row; starts a new epoch after the last row. Raises DataError."""

    def prefetch(self) -> None:
        """Read the next row ahead of time. `next_row` then returns it, or raises the error."""

    def state_dict(self) -> dict[str, Any]:
        """The place of the next row."""

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a place."""


class Hook:
    """Actions around the steps of training. Each method does nothing by default.

    The trainer calls its hooks in the order of its list, which `erniekit.train.build_hooks` states. All
    processes of a run have the same hooks, except for those that call no collectives.
    """

    def on_train_start(self, trainer: Trainer) -> None:
        """Before the first step, also if no step is left."""

    def on_step_start(self, trainer: Trainer) -> None:
        """Before the rows of a step are drawn."""

    def before_optimizer_step(self, optimizer: AdamW) -> dict[str, float]:
        """After gradients are reduced and before they are clipped. Returns losses of the step to log."""
        return {}

    def after_optimizer_step(
        self, optimizer: AdamW, learning_rate: float, expert_counts: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """After the update. Returns losses of the step to log.

        learning_rate: the rate of the step before any ratio; expert_counts: int64 [experts] by "layer_1/text", the
        tokens of the whole step routed to each expert.
        """
        return {}

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """After each step; `trainer.progress` counts it."""

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """After an evaluation, with metrics such as "eval/loss"."""

    def scalars(self) -> dict[str, float]:
        """Further scalars for a log line, computed only when a line is written."""
        return {}

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last step, also after an interrupt, but not after an error."""

    def on_error(self, trainer: Trainer) -> None:
        """After an error, on all processes. Model, optimizer, rows and progress are those after the last whole step."""

    def close(self) -> None:
        """At the end, also after an error."""


@dataclass(frozen=True)
class TrainerSettings:
    """Sizes of a run.

    Training also ends with the last row of the last epoch (`RowSource.is_over`); the last step has the remaining rows.
    """

    total_steps: int
    rows_per_step: int
    max_length: int
    max_grad_norm: float
    seed: int


@dataclass(eq=False)
class Trainer:
    """Trains a model, and calls hooks around the steps.

    dist: the processes of the run; reducer: reduces their gradients; skipped_samples: counts the samples that any of
    them has skipped. All three are None for one process. count_flops: FLOPs of training on a row; None: not counted.
    nonfinite: decides about steps with a loss or gradient that is not finite.

    progress: where training starts, updated by every step. is_interrupted: all processes stop after the current step.
    stop_reason: why training ends early; set by a hook.
    """

    model: nn.Layer
    objective: Objective
    optimizer: AdamW
    schedule: Schedule
    rows: RowSource
    settings: TrainerSettings
    hooks: Sequence[Hook] = ()
    dist: DistributedContext | None = None
    reducer: GradientReducer | None = None
    skipped_samples: SkippedSampleSync | None = None
    nonfinite: NonFinitePolicy = field(default_factory=NonFinitePolicy)
    count_flops: Callable[[PackedBatch], float] | None = None
    progress: TrainerProgress = field(default_factory=TrainerProgress)
    is_interrupted: bool = field(default=False, init=False)
    stop_reason: str | None = field(default=None, init=False)
    _guard: InterruptGuard | None = field(default=None, init=False)
    # The place of the rows at the start of the step that is being computed, and whether its update has begun.
    _place: dict[str, Any] | None = field(default=None, init=False)
    _is_updating: bool = field(default=False, init=False)

    def train(self, guard: InterruptGuard) -> None:
        """Run the steps that are left. An interrupt noted by `guard` ends training after the current step.

        Raises ErnieKitError as `train_step` does.
        """
        self._guard, self.is_interrupted = guard, guard.requested is not None and self.dist is None
        self.model.train()
        try:
            for hook in self.hooks:
                hook.on_train_start(self)
            while not self.is_finished and not self.is_interrupted:
                for hook in self.hooks:
                    hook.on_step_start(self)
                metrics = self.train_step()
                for hook in self.hooks:
                    hook.on_step_end(self, metrics)
                if self.dist is None:
                    self.is_interrupted = self.is_stopping
            for hook in self.hooks:
                hook.on_train_end(self)
        except Exception as error:
            self._after_error(error)
            raise
        finally:
            for hook in self.hooks:
                hook.close()

    @property
    def is_stopping(self) -> bool:
        """Whether this process knows of an interrupt; others may not know of it yet."""
        return self.is_interrupted or (self._guard is not None and self._guard.requested is not None)

    def _after_error(self, error: Exception) -> None:
        """Call the hooks where the last whole step can be saved.

        An error of one process alone leaves the others in the middle of their step.
        """
        if self._is_updating or isinstance(error, NonFiniteError):
            return
        if self.dist is not None and not is_of_all(error):
            return
        if self._place is not None:
            self.optimizer.clear_gradients()
            self.rows.load_state_dict(self._place)
            self._place = None
        for hook in self.hooks:
            hook.on_error(self)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done, all rows of all epochs are drawn, or a hook has stopped training."""
        is_done = self.progress.step >= self.settings.total_steps or self.rows.is_over
        return is_done or self.stop_reason is not None

    def train_step(self) -> StepMetrics:
        """One optimizer step. Losses are divided by the totals of all rows of the step, see `StepTotals`.

        Raises the ErnieKitError of `nonfinite` before the update, if a loss or a gradient is not finite.
        """
        start = time.perf_counter()
        self._place = self.rows.state_dict()
        batches, num_rows, totals = self._next_batches()
        data_seconds = time.perf_counter() - start

        with naming_rows(self.progress.step + 1, batches):
            results = self._forward_backward(batches, totals)
        data_seconds += self._prefetch()
        # Here the host waits for the device for the first time in the step.
        sums = sum_step(results, self._flops(batches), self._all_reduce)
        norm, router_losses = self._reduce_gradients()

        numbers = StepNumbers(self.progress.step + 1, batches, sums.row_losses, sums.loss, norm)
        is_applied = self.nonfinite.accepts(numbers, self.optimizer, self.progress.skipped_in_row)
        self._is_updating = True
        if is_applied:
            router_losses |= self._update(norm, sums.expert_counts)
        else:
            self.optimizer.clear_gradients()

        num_tokens = sum(totals.modality_tokens)
        self.progress.step += 1
        self.progress.rows += num_rows
        self.progress.tokens += num_tokens
        self.progress.loss_tokens += totals.loss_tokens
        self.progress.skipped_steps += not is_applied
        self.progress.skipped_in_row = 0 if is_applied else self.progress.skipped_in_row + 1
        self._is_updating, self._place = False, None
        return StepMetrics(
            loss_sum=sums.loss,
            loss_tokens=totals.loss_tokens,
            tokens=num_tokens,
            flops=sums.flops,
            positions=num_rows * self.settings.max_length,
            gradient_norm=norm,
            seconds=time.perf_counter() - start,
            data_seconds=data_seconds,
            modality_tokens=dict(zip(MODALITIES, totals.modality_tokens, strict=True)),
            expert_counts=sums.expert_counts,
            router_sums=sums.router_sums,
            router_losses=router_losses,
            pair_sums=sums.pair_sums,
            is_skipped=not is_applied,
            rows=row_losses(batches, sums.row_losses),
        )

    def _reduce_gradients(self) -> tuple[float, dict[str, float]]:
        """Finish the reduction of the gradients. Returns their norm before clipping, and the losses that hooks add."""
        if self.reducer is not None:
            self.reducer.reduce()
        losses: dict[str, float] = {}
        for hook in self.hooks:
            losses |= hook.before_optimizer_step(self.optimizer)
        norm = gradient_norm(self.optimizer.gradients()) if self.reducer is None else self.reducer.norm()
        return norm, losses

    def _update(self, norm: float, expert_counts: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Clip the gradients and apply them. Returns the losses that hooks add."""
        learning_rate = self.schedule.learning_rate(self.progress.step)
        self.optimizer.step(learning_rate, clip_scale(norm, self.settings.max_grad_norm))
        self.optimizer.clear_gradients()
        if self.reducer is not None:
            self.reducer.all_gather_params()
        losses: dict[str, float] = {}
        for hook in self.hooks:
            losses |= hook.after_optimizer_step(self.optimizer, learning_rate, expert_counts)
        return losses

    def end_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Pass the metrics of an evaluation to all hooks."""
        for hook in self.hooks:
            hook.on_evaluation_end(self, metrics)

    def _next_batches(self) -> tuple[list[PackedBatch], int, StepTotals]:
        """The rows of this process in the next step, the number of rows of all processes, and the step's totals.

        Skips steps in which no process has a trained token.
        """
        for _ in range(_MAX_EMPTY_STEPS):
            error: ErnieKitError | None = None
            try:
                batches = self._draw_rows()
            except ErnieKitError as raised:
                batches, error = [], raised
            num_rows, totals = self._count(batches, error)
            if totals.loss_tokens:
                return batches, num_rows, totals
        raise error_of_all(DataError(f"none of the last {_MAX_EMPTY_STEPS} steps has a trained token"))

    def _draw_rows(self) -> list[PackedBatch]:
        rows_per_process = self.settings.rows_per_step // (self.dist.size if self.dist is not None else 1)
        batches = [self.rows.next_row()]
        while len(batches) < rows_per_process and not self.rows.is_over:
            batches.append(self.rows.next_row())
        return batches

    def _prefetch(self) -> float:
        """Read the first row of the next step while the device computes. Returns the time in seconds."""
        start = time.perf_counter()
        if self.progress.step + 1 < self.settings.total_steps and not self.rows.is_over:
            self.rows.prefetch()
        return time.perf_counter() - start

    def _count(self, batches: Sequence[PackedBatch], error: ErnieKitError | None) -> tuple[int, StepTotals]:
        """The number of rows of the step and their totals over all processes.

        The same all-reduce exchanges interrupts and skipped samples, so that all processes stop after the same step,
        and errors: where one process cannot read its rows, all raise.
        """
        is_requested = self._guard is not None and self._guard.requested is not None
        counted = self._counted(batches)
        reduced = self._all_reduce(
            {
                "rows": count_rows(counted),
                "pairs": count_pairs(counted),
                "interrupts": np.asarray(is_requested, np.int64),
                "skipped": np.asarray(self.skipped_samples.new if self.skipped_samples is not None else 0),
                "errors": np.asarray(error is not None, np.int64),
            }
        )
        if reduced["errors"]:
            raise error_of_all(error)
        if self.skipped_samples is not None and reduced["skipped"]:
            self.skipped_samples.share()
        self.is_interrupted = bool(reduced["interrupts"]) and self.dist is not None
        num_rows, loss_tokens, text, vision = reduced["rows"].tolist()
        positions = self.settings.rows_per_step * self.settings.max_length
        return num_rows, StepTotals(loss_tokens, positions, (text, vision), *reduced["pairs"].tolist())

    def _counted(self, batches: Sequence[PackedBatch]) -> Sequence[PackedBatch]:
        """The rows that this process counts; a row that several processes share is counted by one of them."""
        return batches if self.dist is None or self.dist.counts else []

    def _flops(self, batches: Sequence[PackedBatch]) -> float:
        if self.count_flops is None:
            return 0.0
        return sum(self.count_flops(batch) for batch in self._counted(batches) if not is_filler(batch))

    def _forward_backward(self, batches: Sequence[PackedBatch], totals: StepTotals) -> list[RowResult]:
        """Losses and gradients of the rows of this process. The host uploads the next row while a GPU computes."""
        rank, part = (self.dist.rank, self.dist.part) if self.dist is not None else (0, 0)
        upload = AsyncUpload()
        results: list[RowResult] = []
        row = self.objective.upload(batches[0], upload)
        for index in range(len(batches)):
            is_last = index + 1 == len(batches)
            seed_row(self.settings.seed, self.progress.rows + rank * len(batches) + index, part)
            output = self.objective(row, totals)
            if not is_last:
                row = self.objective.upload(batches[index + 1], upload)
            if self.reducer is not None:
                self.reducer.begin_row(self.optimizer, last=is_last)
            try:
                output.total.backward()
            except OSError as error:
                raise original_error(error) from None
            if self.reducer is not None:
                self.reducer.end_row()
            elif len(batches) > 1:
                self.optimizer.collect_gradients()
            results.append(RowResult(output.loss_sum.detach(), output.routing, output.pairs, upload))
        return results

    def _all_reduce(self, values: dict[str, Any]) -> dict[str, Any]:
        """Numbers or arrays of one dtype, summed over all processes in one all-reduce."""
        if self.dist is None or not values:
            return values
        arrays = [np.asarray(value) for value in values.values()]
        total = self.dist.all_reduce(np.concatenate([array.reshape(-1) for array in arrays]))
        pieces = np.split(total, np.cumsum([array.size for array in arrays])[:-1])
        return {
            name: piece.reshape(array.shape)
            for name, piece, array in zip(values, pieces, arrays, strict=True)
        }


def seed_row(seed: int, row: int, part: int = 0) -> None:
    """Seed Paddle's generators (dropout) for one row of the run, or one process's part of it.

    The randomness of a row depends on the run's seed and the row's number alone. A resumed run therefore continues
    with the randomness of one that never stopped, from two numbers instead of the state of generators.
    """
    paddle.seed(int(np.random.SeedSequence((seed, row, part)).generate_state(1, np.uint64)[0] >> 1))
