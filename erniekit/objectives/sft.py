"""Supervised fine-tuning: next-token cross entropy over the trained tokens of a packed row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor

from erniekit.config.choices import Normalization
from erniekit.data.encode.document import IGNORE
from erniekit.data.load.batch import PackedBatch
from erniekit.models.ernie import ErnieModel
from erniekit.models.row import RowInputs
from erniekit.moe.router import NO_ROUTER_LOSSES
from erniekit.objectives.language import chunked_cross_entropy
from erniekit.objectives.pairs import RowPairs
from erniekit.objectives.routing import RouterWeights, RowRouting, router_loss, row_routing, stack_sums
from erniekit.objectives.totals import StepTotals, is_filler

NO_ROUTER_LOSS = RouterWeights()


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


def row_inputs(batch: PackedBatch) -> RowInputs:
    """The part of a packed batch that the model reads."""
    return RowInputs(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        modality=batch.modality,
        cu_seqlens=batch.cu_seqlens,
        patches=batch.patches,
        grid_thw=batch.grid_thw,
        media_positions=batch.media_positions,
        valid=not is_filler(batch),
    )


def loss_positions(model: ErnieModel, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Positions of loss tokens in the model's hidden states of a row, and their labels, int64 [n] each."""
    start, stop = model.sharding.span(len(batch.labels))
    labels = batch.labels[start:stop]
    positions = np.flatnonzero(labels != IGNORE)
    return paddle.to_tensor(positions), paddle.to_tensor(labels[positions])


class SftObjective:
    """The language-model loss of a packed row, over its loss tokens.

    `normalization` is the divisor of the loss whose gradients are taken. tokens: the loss tokens of the step;
    token_balanced: the positions of full rows, so that a token has the same weight in every step.
    """

    def __init__(
        self,
        model: ErnieModel,
        chunk_tokens: int = 1024,
        *,
        normalization: Normalization = "tokens",
        router_weights: RouterWeights = NO_ROUTER_LOSS,
    ) -> None:
        self.model = model
        self.chunk_tokens = chunk_tokens
        self.normalization = normalization
        self.router_weights = router_weights

    def __call__(self, batch: PackedBatch, totals: StepTotals | None = None) -> SftOutput:
        """The head runs over loss tokens only, `chunk_tokens` at a time.

        `totals` of the step of the row. None (evaluation): `total` is `loss_sum`, without router losses.
        """
        loss_flags = NO_ROUTER_LOSSES if totals is None else self.router_weights.loss_flags
        output = self.model(row_inputs(batch), loss_flags=loss_flags)
        positions, labels = loss_positions(self.model, batch)
        hidden = paddle.index_select(output.hidden, positions)
        loss = chunked_cross_entropy(hidden, self.model.output_weight, labels, self.chunk_tokens)
        if totals is None:
            return SftOutput(loss, loss, len(labels), None)
        total = loss / (totals.loss_tokens if self.normalization == "tokens" else totals.positions)
        routing = None
        if output.routers:
            sums = stack_sums(output.routers)
            added = router_loss(sums, self.router_weights, totals)
            total = total if added is None else total + added
            routing = row_routing(self.model, output.routers, sums)
        return SftOutput(total, loss.detach(), len(labels), routing)
