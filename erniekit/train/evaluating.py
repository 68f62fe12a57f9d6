"""What is measured on held-out data while a model is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import paddle
from paddle import nn

from erniekit.data.load.batch import PackedBatch
from erniekit.display.progress import OnProgress
from erniekit.distributed.context import DistributedContext
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.sft import SftObjective
from erniekit.train.dpo import evaluate_pairs
from erniekit.train.inputs import EvalRows
from erniekit.train.interfaces import Objective
from erniekit.train.skips import SkippedSampleSync

Log = Callable[[str], None]
_PROGRESS_SECONDS = 10.0


class Evaluator:
    """One evaluation after the other: the loss on all of data.eval, and answers to some of its chats.

    answers: figures of the answers after so many steps, None without. All processes call it together, and get the same
    figures.
    """

    def __init__(
        self,
        model: nn.Layer,
        objective: SftObjective | DpoObjective,
        heldout: EvalRows,
        answers: Callable[[int], dict[str, float]] | None,
        dist: DistributedContext,
        log: Log,
    ) -> None:
        self._model, self._objective, self._heldout = model, objective, heldout
        self._answers, self._dist, self._log = answers, dist, log
        self._skips = SkippedSampleSync(heldout.loader.budget, dist)

    def __call__(self, step: int) -> dict[str, float]:
        """Figures such as "eval/loss" and "eval/exact_match" after `step` steps."""
        add = self._dist.add if self._dist.mesh.world.size > 1 else None
        total = -(-self._heldout.num_rows // self._dist.size)
        rows = _told(self._heldout.once(), total, spaced_progress(self._log))
        if isinstance(self._objective, DpoObjective):
            figures = evaluate_pairs(self._model, self._objective, rows, add)
        else:
            figures = {"eval/loss": evaluation_loss(self._model, self._objective, rows, add)}
        self._skips.share()
        if self._answers is not None:
            figures |= self._answers(step)
        # What follows is decided by them, and must be the same everywhere.
        values = self._dist.from_main(np.asarray(list(figures.values()), np.float64))
        return dict(zip(figures, values.tolist(), strict=True))


def evaluation_loss(
    model: nn.Layer,
    objective: Objective,
    rows: Iterable[PackedBatch],
    reduce_totals: Callable[[np.ndarray], np.ndarray] | None = None,
) -> float:
    """Mean loss over all loss tokens of `rows`, of all processes, without dropout and without gradients."""
    total, tokens = 0.0, 0
    model.eval()
    try:
        with paddle.no_grad():
            for batch in rows:
                output = objective(batch)
                total += float(output.loss_sum.item())
                tokens += output.num_loss_tokens
    finally:
        model.train()
    if reduce_totals is not None:
        total, tokens = reduce_totals(np.asarray([total, tokens], np.float64)).tolist()
    return total / tokens


def spaced_progress(log: Log) -> OnProgress:
    """Says how far a long evaluation is, now and then."""
    began: dict[str, float] = {}
    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        started = began.setdefault(what, now)
        if now - last >= _PROGRESS_SECONDS and 0 < done < total:
            last = now
            left = (now - started) * (total - done) / done
            log(f"  evaluation, {what}: {done:,} of {total:,}, about {left:,.0f} s left")

    return report


def _told(rows: Iterable[PackedBatch], total: int, report: OnProgress) -> Iterator[PackedBatch]:
    for done, row in enumerate(rows):
        report("rows", done, total)
        yield row
