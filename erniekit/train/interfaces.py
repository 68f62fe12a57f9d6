"""What the training loop asks of an objective and of the data."""

from __future__ import annotations

from typing import Protocol

import paddle

from erniekit.data.load.batch import PackedBatch
from erniekit.objectives.pairs import RowPairs
from erniekit.objectives.routing import RowRouting
from erniekit.objectives.totals import StepTotals


class ObjectiveOutput(Protocol):
    """The part of an objective's output that the loop reads: see `erniekit.objectives.sft.SftOutput`."""

    @property
    def total(self) -> paddle.Tensor:
        """Scalar with graph: the row's share of the loss of its step, divided and weighted."""

    @property
    def loss_sum(self) -> paddle.Tensor:
        """Scalar float32: the pure loss of the row's tokens, added up."""

    @property
    def num_loss_tokens(self) -> int:
        """How many tokens `loss_sum` is of."""

    @property
    def routing(self) -> RowRouting | None:
        """What routers did, where there are any."""

    @property
    def pairs(self) -> RowPairs | None:
        """Figures of preference pairs, where the row has such."""


class Objective(Protocol):
    """The loss of a row: `erniekit.objectives.sft.SftObjective`, `erniekit.objectives.dpo.DpoObjective`."""

    def __call__(self, batch: PackedBatch, totals: StepTotals | None = None) -> ObjectiveOutput:
        """`totals` of the row's step; None in evaluation, where nothing but `loss_sum` is read."""
