"""The experts of a layer, computed over tokens that are already sorted by expert."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from erniekit.models.config import MoeConfig
from erniekit.models.layers import Mlp


class Experts(nn.LayerList):
    """Text experts 0..E-1, then, in VL models, vision experts E..2E-1 with a width of their own."""

    def __init__(self, hidden_size: int, moe: MoeConfig, dtype: str) -> None:
        super().__init__(
            Mlp(hidden_size, width, dtype) for width in moe.intermediate_sizes for _ in range(moe.num_experts)
        )

    def compute(self, x: Tensor, counts: list[int]) -> Tensor:
        """[n, hidden] sorted by expert -> [n, hidden]; `counts` says how many rows each expert has.

        A loop over slices: on CPU as fast as padded batched products (reference: Paddle has no grouped product
        there). Experts without tokens are not called; the optimizer takes their gradient as zero.
        """
        active = [expert for expert, count in enumerate(counts) if count]
        parts = paddle.split(x, [counts[expert] for expert in active]) if len(active) > 1 else [x]
        return paddle.concat([self[expert](part) for expert, part in zip(active, parts, strict=True)])
