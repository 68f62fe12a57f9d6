"""Supervised fine-tuning: next-token cross entropy over the trained tokens of a packed row."""

from __future__ import annotations

from dataclasses import dataclass

import paddle
from paddle import Tensor

from erniekit.config.choices import Normalization
from erniekit.data.load.batch import PackedBatch
from erniekit.kernels.cross_entropy import chunked_cross_entropy
from erniekit.models.ernie import ErnieModel
from erniekit.moe.router import NO_ROUTER_LOSSES
from erniekit.objectives.device_batch import DeviceBatch, upload_batch
from erniekit.objectives.pairs import RowPairs
from erniekit.objectives.routing import NO_ROUTER_WEIGHTS, RouterWeights, RowRouting, add_router_losses
from erniekit.objectives.totals import StepTotals
from erniekit.upload import Upload


@dataclass(frozen=True)
class SftOutput:
    """The result for one row, or with context parallelism for the span of this process.

    `total`: scalar with graph, the contribution of the row to the loss of the step, with router losses; `loss_sum`:
    float32 scalar, the sum over the `num_loss_tokens` loss tokens; `routing`: None without experts or without totals;
    `pairs`: None, since SFT has no preference pairs.
    """

    total: Tensor
    loss_sum: Tensor
    num_loss_tokens: int
    routing: RowRouting | None
    pairs: RowPairs | None = None


class SftObjective:
    """The language-model loss of a packed row, over its loss tokens.

    normalization: the divisor of `total`. "tokens": the loss tokens of the step; "token_balanced": the positions of
    full rows, so that a token has the same weight in every step.
    """

    def __init__(
        self,
        model: ErnieModel,
        chunk_tokens: int = 1024,
        *,
        normalization: Normalization = "tokens",
        router_weights: RouterWeights = NO_ROUTER_WEIGHTS,
    ) -> None:
        self.model = model
        self.chunk_tokens = chunk_tokens
        self.normalization = normalization
        self.router_weights = router_weights

    def upload(self, batch: PackedBatch, upload: Upload = paddle.to_tensor) -> DeviceBatch:
        """Copy a row to the device."""
        return upload_batch(self.model, batch, upload=upload)

    def __call__(self, batch: PackedBatch | DeviceBatch, totals: StepTotals | None = None) -> SftOutput:
        """Compute the loss of a row. The head runs over loss tokens only, `chunk_tokens` at a time.

        totals: of the row's step; None in evaluation, where `total` is `loss_sum`, without router losses.
        """
        if isinstance(batch, PackedBatch):
            batch = self.upload(batch)
        loss_flags = NO_ROUTER_LOSSES if totals is None else self.router_weights.loss_flags
        output = self.model(batch.row, loss_flags=loss_flags)
        labels = batch.labels
        hidden = paddle.index_select(output.hidden, batch.positions)
        divisor = self._divisor(totals)
        loss = chunked_cross_entropy(
            hidden, self.model.output_weight, labels, self.chunk_tokens, scale=1 / divisor
        )
        if totals is None:
            return SftOutput(loss, loss, len(labels), None)
        total, routing = add_router_losses(
            loss / divisor, self.model, output.routers, self.router_weights, totals
        )
        return SftOutput(total, loss.detach(), len(labels), routing)

    def _divisor(self, totals: StepTotals | None) -> int:
        if totals is None:
            return 1
        return totals.loss_tokens if self.normalization == "tokens" else totals.positions
