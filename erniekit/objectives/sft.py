"""Supervised fine-tuning: next-token cross entropy over the trained tokens of a packed row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor

from erniekit.data.batch import PackedBatch
from erniekit.models.decoder import DecoderOutput
from erniekit.models.ernie import ErnieModel, RowInputs
from erniekit.objectives.language import chunked_cross_entropy


@dataclass(frozen=True)
class SftOutput:
    """`loss_sum` float32 scalar, the sum over `num_loss_tokens` positions; `expert_counts` see below.

    `expert_counts` maps "layer_3/text" and "layer_3/vision" to int64 [experts]: tokens that chose each expert.
    """

    loss_sum: Tensor
    num_loss_tokens: int
    expert_counts: dict[str, np.ndarray]


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
    )


class SftObjective:
    """Runs the model over a packed row and sums the loss of its trained tokens."""

    def __init__(self, model: ErnieModel, chunk_tokens: int = 1024) -> None:
        self.model = model
        self.chunk_tokens = chunk_tokens

    def __call__(self, batch: PackedBatch) -> SftOutput:
        """The head sees only positions whose label is not -100, `chunk_tokens` at a time."""
        output = self.model(row_inputs(batch))
        positions = np.flatnonzero(batch.labels != -100)
        hidden = paddle.index_select(output.hidden, paddle.to_tensor(positions))
        labels = paddle.to_tensor(batch.labels[positions])
        loss = chunked_cross_entropy(hidden, self.model.output_weight, labels, self.chunk_tokens)
        return SftOutput(loss, len(positions), self._expert_counts(output))

    def _expert_counts(self, output: DecoderOutput) -> dict[str, np.ndarray]:
        moe = self.model.config.moe
        counts: dict[str, np.ndarray] = {}
        if moe is None:
            return counts
        for layer, tensor in output.expert_counts.items():
            by_modality = tensor.numpy().reshape(moe.num_modalities, moe.num_experts)
            for kind, row in zip(("text", "vision"), by_modality, strict=False):
                counts[f"layer_{layer}/{kind}"] = row
        return counts
