"""The training loop: rows to gradients to an update, and what happens between the steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import nn

from erniekit.data.load.batch import PackedBatch
from erniekit.distributed.context import DistributedContext
from erniekit.distributed.failures import original_error
from erniekit.errors import DataError, ErnieKitError
from erniekit.interrupt import InterruptGuard
from erniekit.objectives.pairs import RowPairs
from erniekit.objectives.routing import RowRouting
from erniekit.objectives.totals import MODALITIES, StepTotals, count_pairs, count_rows
from erniekit.optim.adamw import AdamW, clip_gradients, gradient_norm
from erniekit.optim.schedule import Schedule
from erniekit.parallel.data_parallel import GradientReducer
from erniekit.train.best import BestTracker, EarlyStopping
from erniekit.train.figures import MetricsAccumulator, StepMetrics
from erniekit.train.interfaces import Objective, RowSource
from erniekit.train.monitor import Monitor, memory
from erniekit.train.progress import Console
from erniekit.train.routers import Routers
from erniekit.train.skips import SkippedSampleSync

_NAMED_SAMPLES = 8
_EMPTY_STEPS = 1000


@dataclass(frozen=True)
class LoopSettings:
    """Sizes and intervals, all in steps or rows.

    The run also ends with the last row of the last epoch, where `rows` have one; its last step takes the rows that
    are left. Without one every step is full, however many epochs `total_steps` takes. `eval_every` and `save_every`
    None: only at the end.
    """

    total_steps: int
    rows_per_step: int
    max_length: int
    max_grad_norm: float
    seed: int
    log_every: int = 1
    eval_every: int | None = None
    save_every: int | None = None


@dataclass
class Progress:
    """How far a run is: `step` updates done, `rows` drawn, tokens of all kinds and those with loss.

    `best`: what evaluations have shown.
    """

    step: int = 0
    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    window: MetricsAccumulator = field(default_factory=MetricsAccumulator)
    best: BestTracker = field(default_factory=BestTracker)


class Loop:
    """Runs the steps that are left.

    `save` writes a checkpoint of `progress` as it stands; `evaluate` returns figures such as {"eval/loss": ...} after
    so many steps, or is None where there is no held-out data; `watch` judges them: the best is saved, and the run ends
    when it has waited too long for a better one. `epoch` says how many epochs are over, as a fraction, for the log.
    `routers` is what happens to routers between the steps. `reduce_totals` adds an int64 or float64 array up over all
    processes, `team` are those, `exchange` is what they do with gradients, `skips` what they could not use; None: one.
    """

    def __init__(
        self,
        *,
        model: nn.Layer,
        objective: Objective,
        optimizer: AdamW,
        schedule: Schedule,
        rows: RowSource,
        settings: LoopSettings,
        monitor: Monitor,
        console: Console,
        save: Callable[[Progress], None],
        routers: Routers | None = None,
        reduce_totals: Callable[[np.ndarray], np.ndarray] | None = None,
        dist: DistributedContext | None = None,
        reducer: GradientReducer | None = None,
        skips: SkippedSampleSync | None = None,
        evaluate: Callable[[int], dict[str, float]] | None = None,
        watch: EarlyStopping | None = None,
        epoch: Callable[[], float] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.rows = rows
        self.settings = settings
        self.monitor = monitor
        self.console = console
        self.progress = progress or Progress()
        self.routers = routers
        self._reduce_totals = reduce_totals
        self._dist = dist
        self._reducer = reducer
        self._skips = skips
        self._guard: InterruptGuard | None = None
        self._stopping = False
        self._save = save
        self._evaluate = evaluate
        self.watch = watch
        self._epoch = epoch
        self._saved_at = self._evaluated_at = self.progress.step

    def run(self, guard: InterruptGuard) -> None:
        """Train until the last step, or until `guard` is asked to stop; either way with a checkpoint at the
        end.

        Raises ErnieKitError where a loss or a gradient is not finite: before the update, naming the samples.
        """
        settings, progress = self.settings, self.progress
        self._guard, self._stopping = guard, guard.requested is not None and self._dist is None
        self.model.train()
        self.console.begin(progress.step, settings.total_steps)
        try:
            while not self.finished and not self._stopping:
                progress.window.add(self.step())
                done = progress.step
                if done % settings.log_every == 0 or self.finished:
                    self._log()
                if settings.eval_every and done % settings.eval_every == 0:
                    self._report_evaluation()
                if self.is_stopped_early and progress.window.steps:
                    self._log()
                if settings.save_every and done % settings.save_every == 0 and self._saved_at != done:
                    self._checkpoint()
                if self._dist is None:
                    self._stopping = guard.requested is not None
            if not self._stopping and self._evaluated_at != progress.step:
                self._report_evaluation()
            if self._saved_at != progress.step:
                self._checkpoint()
        finally:
            self.console.end()

    @property
    def finished(self) -> bool:
        """Whether all steps are done, all rows of all epochs were drawn, or evaluations no longer improve."""
        return self.progress.step >= self.settings.total_steps or self.rows.is_over or self.is_stopped_early

    @property
    def is_stopped_early(self) -> bool:
        """Whether evaluations have not improved for too long."""
        return self.watch is not None and self.watch.is_over(self.progress.best)

    def step(self) -> StepMetrics:
        """One update. Losses are divided by the totals of all rows of the step, see `StepTotals`."""
        began = time.perf_counter()
        batches, rows, totals = self._next_rows()
        data_seconds = time.perf_counter() - began
        losses: list[paddle.Tensor] = []
        routings: list[RowRouting] = []
        pairs: list[RowPairs] = []
        for number, batch in enumerate(batches):
            first = self.progress.rows + (self._dist.rank * len(batches) if self._dist is not None else 0)
            seed_row(self.settings.seed, first + number, self._dist.part if self._dist is not None else 0)
            output = self.objective(batch, totals)
            self._backward(output.total, last=number + 1 == len(batches), only=len(batches) == 1)
            losses.append(output.loss_sum.detach())
            if output.routing is not None:
                routings.append(output.routing)
            if output.pairs is not None:
                pairs.append(output.pairs)
        # The host waits for the device here for the first time in the step.
        values = [float(loss.item()) for loss in losses]
        counts = self._reduce(_added(routing.expert_counts() for routing in routings))
        norm, router_losses = self._update(batches, values, counts)
        sums = {"loss": math.fsum(values)} | _added(routing.router_sums() for routing in routings)
        sums = {name: float(value) for name, value in self._reduce(sums).items()}
        pair_sums = self._reduce(_added(row.sums() for row in pairs))
        self.progress.step += 1
        self.progress.rows += rows
        self.progress.tokens += sum(totals.modality_tokens)
        self.progress.loss_tokens += totals.loss_tokens
        return StepMetrics(
            loss_sum=sums.pop("loss"),
            loss_tokens=totals.loss_tokens,
            tokens=sum(totals.modality_tokens),
            positions=rows * self.settings.max_length,
            gradient_norm=norm,
            seconds=time.perf_counter() - began,
            data_seconds=data_seconds,
            modality_tokens=dict(zip(MODALITIES, totals.modality_tokens, strict=True)),
            expert_counts=counts,
            router_sums=sums,
            router_losses=router_losses,
            pair_sums={name: float(value) for name, value in pair_sums.items()},
        )

    def _backward(self, total: paddle.Tensor, *, last: bool, only: bool) -> None:
        """The gradients of a row: the last, or the only one, that this process has in the step."""
        if self._reducer is not None:
            self._reducer.begin_row(self.optimizer, last=last)
        try:
            total.backward()
        except OSError as error:
            raise original_error(error) from None
        if self._reducer is not None:
            self._reducer.end_row()
        elif not only:
            self.optimizer.collect_gradients()

    def _next_rows(self) -> tuple[list[PackedBatch], int, StepTotals]:
        """The rows of this process, the number of those of all, and their totals.

        Steps for which no process has a sample left are passed over, as one process passes over such rows.
        """
        for _ in range(_EMPTY_STEPS):
            batches = self._draw()
            rows, totals = self._count(batches)
            if totals.loss_tokens:
                return batches, rows, totals
        raise DataError(f"none of the last {_EMPTY_STEPS} steps has a token with loss")

    def _count(self, batches: Sequence[PackedBatch]) -> tuple[int, StepTotals]:
        """The number of rows of the step and their totals, on all processes."""
        asked = self._guard is not None and self._guard.requested is not None
        # All processes stop after the same step: the one in which each knows that one of them was asked to.
        counted = batches if self._dist is None or self._dist.counts else []
        told = self._reduce(
            {
                "counts": count_rows(counted),
                "pairs": count_pairs(counted),
                "stop": np.asarray(asked, np.int64),
                "skipped": np.asarray(self._skips.new if self._skips is not None else 0),
            }
        )
        if self._skips is not None and told["skipped"]:
            self._skips.share()
        self._stopping = bool(told["stop"]) and self._dist is not None
        rows, loss_tokens, text, vision = told["counts"].tolist()
        positions = self.settings.rows_per_step * self.settings.max_length
        return rows, StepTotals(loss_tokens, positions, (text, vision), *told["pairs"].tolist())

    def _update(
        self, batches: Sequence[PackedBatch], losses: Sequence[float], counts: dict[str, np.ndarray]
    ) -> tuple[float, dict[str, float]]:
        """Apply the gradients of the rows. Returns their norm, and the losses of routers as such."""
        if self._reducer is not None:
            self._reducer.reduce()
        router_losses = self.routers.before_step(self.optimizer) if self.routers is not None else {}
        gradients = self.optimizer.gradients()
        norm = gradient_norm(gradients) if self._reducer is None else self._reducer.norm()
        self._check_finite(batches, losses, norm)
        clip_gradients(gradients, norm, self.settings.max_grad_norm)
        rate = self.schedule.learning_rate(self.progress.step)
        self.optimizer.step(rate)
        self.optimizer.clear_gradients()
        if self._reducer is not None:
            self._reducer.all_gather_params()
        if self.routers is not None:
            router_losses |= self.routers.after_step(self.optimizer, rate, counts)
        return norm, router_losses

    def _reduce(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Numbers or arrays of one type, added up over all processes in one go."""
        if self._reduce_totals is None or not figures:
            return figures
        parts = [np.asarray(value) for value in figures.values()]
        total = self._reduce_totals(np.concatenate([part.reshape(-1) for part in parts]))
        pieces = np.split(total, np.cumsum([part.size for part in parts])[:-1])
        return {
            name: piece.reshape(part.shape) for name, piece, part in zip(figures, pieces, parts, strict=True)
        }

    def _draw(self) -> list[PackedBatch]:
        rows = self.settings.rows_per_step // (self._dist.size if self._dist is not None else 1)
        batches = [self.rows.next_row()]
        while len(batches) < rows and not self.rows.is_over:
            batches.append(self.rows.next_row())
        return batches

    def _check_finite(self, batches: Sequence[PackedBatch], losses: Sequence[float], norm: float) -> None:
        where = f"step {self.progress.step + 1}"
        advice = (
            "The step was not applied and earlier checkpoints are untouched. Look at these samples, or lower "
            "optimizer.learning_rate or optimizer.max_grad_norm."
        )
        bad = [batch for batch, loss in zip(batches, losses, strict=True) if not math.isfinite(loss)]
        if bad:
            raise ErnieKitError(
                f"{where}: the loss is not a finite number in the samples {_names(bad)}. {advice}"
            )
        if not math.isfinite(norm):
            raise ErnieKitError(
                f"{where}: the gradient norm is {norm} with the samples {_names(batches)}. {advice}"
            )

    def _log(self) -> None:
        progress = self.progress
        scalars = progress.window.scalars()
        scalars["train/learning_rate"] = self.schedule.learning_rate(progress.step - 1)
        scalars["train/tokens_seen"] = float(progress.tokens)
        if self.routers is not None:
            scalars |= self.routers.statistics()
        scalars |= memory()
        shares = progress.window.expert_shares()
        epoch = self._epoch() if self._epoch is not None else None
        self.monitor.write(progress.step, scalars, epoch=epoch, shares=shares)
        self.console.step(progress.step, scalars)
        progress.window = MetricsAccumulator()

    def _report_evaluation(self) -> None:
        self._evaluated_at = self.progress.step
        if self._evaluate is None:
            return
        began = time.perf_counter()
        scalars = self._evaluate(self.progress.step)
        seconds = time.perf_counter() - began
        self.monitor.write(self.progress.step, scalars | {"eval/seconds": seconds})
        told = "  ".join(f"{name} {value:.4f}" for name, value in scalars.items())
        self.console.log(f"step {self.progress.step}: {told}  ({seconds:.1f} s)")
        if self.watch is not None and self.watch.observe(self.progress.best, self.progress.step, scalars):
            self._checkpoint()

    def _checkpoint(self) -> None:
        self.monitor.flush()
        self._save(self.progress)
        self._saved_at = self.progress.step


def seed_row(seed: int, row: int, part: int = 0) -> None:
    """Seed Paddle's generators (dropout) for one row of the run, or for one of the parts that processes have of it.

    Each row's randomness depends on the run's seed and the row's number alone. A resumed run therefore
    continues with the randomness of one that never stopped, from two numbers instead of a dump of generators.
    """
    paddle.seed(int(np.random.SeedSequence((seed, row, part)).generate_state(1, np.uint64)[0] >> 1))


def _added(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Entries of the same name added up."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


def _names(batches: Sequence[PackedBatch]) -> str:
    names = list(dict.fromkeys(name for batch in batches for name in batch.sample_ids))
    shown = ", ".join(names[:_NAMED_SAMPLES])
    return shown if len(names) <= _NAMED_SAMPLES else f"{shown} and {len(names) - _NAMED_SAMPLES} more"
