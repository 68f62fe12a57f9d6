"""The interface of training objectives, which trainer and evaluation use."""

from __future__ import annotations

from typing import Protocol

import paddle

from erniekit.data.load.batch import PackedBatch
from erniekit.objectives.device_batch import DeviceBatch
from erniekit.objectives.pairs import RowPairs
from erniekit.objectives.routing import RowRouting
from erniekit.objectives.totals import StepTotals
from erniekit.upload import Upload


class ObjectiveOutput(Protocol):
    """The output of an objective for one row, such as `erniekit.objectives.sft.SftOutput`."""

    @property
    def total(self) -> paddle.Tensor:
        """Scalar with graph: the row's share of the loss of its step, divided and weighted."""

    @property
    def loss_sum(self) -> paddle.Tensor:
        """Scalar float32: the sum of the pure loss over the row's trained tokens."""

    @property
    def num_loss_tokens(self) -> int:
        """The number of trained tokens."""

    @property
    def routing(self) -> RowRouting | None:
        """Counts and losses of routers; None without experts."""

    @property
    def pairs(self) -> RowPairs | None:
        """Metrics of preference pairs; None without pairs."""


class Objective(Protocol):
    """The loss of a row: `erniekit.objectives.sft.SftObjective` or `erniekit.objectives.dpo.DpoObjective`."""

    def upload(self, batch: PackedBatch, upload: Upload) -> DeviceBatch:
        """Copy a row to the device."""

    def __call__(self, batch: PackedBatch | DeviceBatch, totals: StepTotals | None = None) -> ObjectiveOutput:
        """batch: uploaded first unless it is on the device; totals: of the row's step, None in evaluation, which reads
        `loss_sum` and `pairs` only."""
