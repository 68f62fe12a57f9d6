"""Softmax routing with a correction bias that selects experts but does not weigh them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from erniekit.models.config import MoeConfig


class ModalityIndex:
    """Which tokens of a row are text and which are vision, as indices ready for gathering.

    `modality` int8 [T]: 0 text, 1 vision. Built once a row and used by every layer.
    """

    def __init__(self, modality: np.ndarray) -> None:
        parts = [np.flatnonzero(modality == kind) for kind in (0, 1)]
        self.present = [kind for kind in (0, 1) if parts[kind].size]
        self.tokens: list[Tensor | None] = [None, None]
        self.restore: Tensor | None = None
        # A row of one modality needs no gathering at all.
        if len(self.present) == 2:
            self.tokens = [paddle.to_tensor(part.astype(np.int64)) for part in parts]
            self.restore = paddle.to_tensor(np.argsort(np.concatenate(parts), kind="stable").astype(np.int64))


class Routing(NamedTuple):
    """`experts` int64 [T, k]: modality m's expert e is m * num_experts + e. `weights` float32 [T, k]."""

    experts: Tensor
    weights: Tensor


class Gate(nn.Layer):
    """Router weights of a layer: `weight` for text and, in VL models, `weight_1` for vision; always float32.

    Text models store [experts, hidden], VL models [hidden, experts] (as the Hub does).
    """

    def __init__(self, hidden_size: int, moe: MoeConfig) -> None:
        super().__init__()
        self.transposed = moe.num_modalities == 1
        shape = [moe.num_experts, hidden_size] if self.transposed else [hidden_size, moe.num_experts]
        zero = nn.initializer.Constant(0.0)
        self.weight = self.create_parameter(shape, dtype="float32", default_initializer=zero)
        if moe.num_modalities == 2:
            self.weight_1 = self.create_parameter(shape, dtype="float32", default_initializer=zero)

    def logits(self, x: Tensor, modality: int) -> Tensor:
        """[n, hidden] of one modality -> float32 [n, experts]."""
        weight = self.weight_1 if modality else self.weight
        return paddle.matmul(x.astype("float32"), weight, transpose_y=self.transposed)


class MoeStatics(nn.Layer):
    """`e_score_correction_bias` float32 [modalities, experts]; never trained by gradient."""

    def __init__(self, moe: MoeConfig) -> None:
        super().__init__()
        self.e_score_correction_bias = self.create_parameter(
            [moe.num_modalities, moe.num_experts],
            dtype="float32",
            default_initializer=nn.initializer.Constant(0.0),
        )
        self.e_score_correction_bias.stop_gradient = True


def route(x: Tensor, index: ModalityIndex, gate: Gate, bias: Tensor, moe: MoeConfig) -> Routing:
    """Choose `top_k` experts of its own modality for every token of [T, hidden].

    Selection is by p + bias, weights are p over the sum of the selected p, p = softmax of float32 logits.
    Agrees with transformers' Ernie4_5_MoeTopKRouter and Ernie4_5_VLMoeMoeTopKRouter.
    """
    experts, weights = [], []
    for modality in index.present:
        tokens = index.tokens[modality]
        rows = x if tokens is None else paddle.index_select(x, tokens)
        probabilities = F.softmax(gate.logits(rows, modality), axis=-1)
        _, chosen = paddle.topk(probabilities.detach() + bias[modality], moe.top_k, axis=-1)
        share = paddle.take_along_axis(probabilities, chosen, axis=-1)
        weights.append(share / paddle.clip(share.sum(-1, keepdim=True), min=moe.norm_min))
        experts.append(chosen + modality * moe.num_experts if modality else chosen)
    if index.restore is None:
        return Routing(experts[0], weights[0])
    return Routing(
        paddle.index_select(paddle.concat(experts), index.restore),
        paddle.index_select(paddle.concat(weights), index.restore),
    )
