"""Evaluates the model during training, by all processes of the run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import nn

from erniekit.data.load.batch import PackedBatch
from erniekit.data.load.loader import RowLoader
from erniekit.data.load.rows import StoredRows
from erniekit.distributed.context import DistributedContext
from erniekit.distributed.failures import error_of_all
from erniekit.distributed.skipped_samples import SkippedSampleSync
from erniekit.errors import ErnieKitError
from erniekit.evaluation.answers import AnswerEvaluator, eval_progress
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.objective import Objective
from erniekit.objectives.pairs import pair_means
from erniekit.objectives.sft import SftObjective

Log = Callable[[str], None]
AllReduce = Callable[[np.ndarray], np.ndarray]
"""Sums a float64 array over all processes."""


@dataclass(frozen=True)
class EvalRows:
    """The packed rows of data.eval, split between `ranks` processes."""

    rows: StoredRows
    loader: RowLoader
    rank: int
    ranks: int

    def once(self) -> Iterator[PackedBatch]:
        """Every row of this process, always in the same order."""
        return self.loader.once(self.rows.once(self.rank, self.ranks))

    @property
    def num_rows(self) -> int:
        """The number of rows of all processes together."""
        return self.rows.rows_per_epoch(0)


class EvaluationStopped(Exception):
    """An evaluation was interrupted, on all processes together."""


class Evaluator:
    """Computes the loss on all of data.eval, and scores generated answers to some of its chats.

    answers: scores generated answers; None: no answers. All processes call the evaluator together and get the same
    metrics.
    """

    def __init__(
        self,
        model: nn.Layer,
        objective: SftObjective | DpoObjective,
        eval_rows: EvalRows,
        answers: AnswerEvaluator | None,
        dist: DistributedContext,
        log: Log,
    ) -> None:
        self._model, self._objective, self._eval_rows = model, objective, eval_rows
        self.answers, self._dist, self._log = answers, dist, log
        self._skipped_samples = SkippedSampleSync(eval_rows.loader.budget, dist)

    def __call__(self, step: int, is_stopping: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Metrics such as "eval/loss" and "eval/exact_match" after `step` steps.

        is_stopping: whether to stop; asked before each row and each answer. Raises EvaluationStopped on all processes
        where it holds on any.
        """
        all_reduce = self._dist.all_reduce if self._dist.mesh.world.size > 1 else None
        total = -(-self._eval_rows.num_rows // self._dist.size)
        report = eval_progress(self._log, "rows")
        rows = self._rows(is_stopping, lambda done: report("loss", done, total))
        if isinstance(self._objective, DpoObjective):
            metrics = evaluate_pairs(self._model, self._objective, rows, all_reduce)
        else:
            metrics = {"eval/loss": evaluate_loss(self._model, self._objective, rows, all_reduce)}
        self._skipped_samples.share()
        if self.answers is not None:
            self._exchange(None, is_stopping)
            metrics |= self.answers(step, self._stop_if(is_stopping))
        # Processes decide from the metrics when to stop and save, so they must be the same everywhere.
        values = self._dist.broadcast(np.asarray(list(metrics.values()), np.float64))
        return dict(zip(metrics, values.tolist(), strict=True))

    def _rows(self, is_stopping: Callable[[], bool], report: Callable[[int], None]) -> Iterator[PackedBatch]:
        """The rows of this process, the same number for each process. An error on one process is raised on all."""
        rows = self._eval_rows.once()
        for done in itertools.count():
            row, error = None, None
            try:
                row = next(rows, None)
            except ErnieKitError as raised:
                error = raised
            self._exchange(error, is_stopping)
            if row is None:
                return
            report(done)
            yield row

    def _exchange(self, error: ErnieKitError | None, is_stopping: Callable[[], bool]) -> None:
        """Raise on all processes together where any has an error, or stops."""
        failed, stopping = self._dist.all_reduce(np.array([error is not None, is_stopping()], np.int64))
        if failed:
            raise error_of_all(error)
        if stopping:
            raise EvaluationStopped

    def _stop_if(self, is_stopping: Callable[[], bool]) -> Callable[[], None]:
        """Raises EvaluationStopped between two answers. Several processes generate different numbers of tokens."""

        def stop() -> None:
            if self._dist.mesh.world.size == 1 and is_stopping():
                raise EvaluationStopped

        return stop


def evaluate_loss(
    model: nn.Layer, objective: Objective, rows: Iterable[PackedBatch], all_reduce: AllReduce | None = None
) -> float:
    """Mean loss over all trained tokens of `rows`, of all processes, without dropout and gradients."""
    loss_sum, loss_tokens = 0.0, 0
    model.eval()
    try:
        with paddle.no_grad():
            for batch in rows:
                output = objective(batch)
                loss_sum += float(output.loss_sum.item())
                loss_tokens += output.num_loss_tokens
    finally:
        model.train()
    if all_reduce is not None:
        loss_sum, loss_tokens = all_reduce(np.asarray([loss_sum, loss_tokens], np.float64)).tolist()
    return loss_sum / loss_tokens


def evaluate_pairs(
    model: nn.Layer,
    objective: DpoObjective,
    rows: Iterable[PackedBatch],
    all_reduce: AllReduce | None = None,
) -> dict[str, float]:
    """Metrics of preference pairs, such as "eval/loss" and "eval/rewards/accuracy", without dropout and gradients.

    all_reduce: None for one process; otherwise each process has at least one row, or its part of one.
    """
    sums: dict[str, float] = {}
    model.eval()
    try:
        with paddle.no_grad():
            for batch in rows:
                for name, value in objective(batch).pairs.sums().items():
                    sums[name] = sums.get(name, 0.0) + value
    finally:
        model.train()
    if all_reduce is not None:
        total = all_reduce(np.asarray(list(sums.values()), np.float64))
        sums = dict(zip(sums, total.tolist(), strict=True))
    means = pair_means(sums)
    loss = means["loss/preference"] + objective.sft_weight * means["loss/sft"]
    return {"eval/loss": loss} | {f"eval/{name}": value for name, value in means.items()}
