"""The experts of a layer, over tokens that are sorted by expert."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from erniekit.layers import Mlp
from erniekit.moe.config import MoeConfig


class Experts(nn.Layer):
    """Text experts 0..E-1 and, in VL models, vision experts E..2E-1, which have a different width.

    With expert parallelism (`MoeConfig.expert_rank`) only the experts of this process exist, under their global
    numbers.
    """

    def __init__(self, hidden_size: int, moe: MoeConfig, dtype: str) -> None:
        super().__init__()
        self.numbers = owned_experts(moe)
        for number in self.numbers:
            width = moe.intermediate_sizes[number // moe.num_experts]
            self.add_sublayer(str(number), Mlp(hidden_size, width, dtype))

    def compute(self, x: Tensor, counts: list[int]) -> Tensor:
        """[n, hidden] sorted by expert -> [n, hidden]; `counts` is the number of rows of each local expert.

        A loop over slices: on CPU, where Paddle has no grouped product, it is as fast as padded batched products.
        Experts without tokens are not called; the optimizer treats their gradient as zero.
        """
        active = [place for place, count in enumerate(counts) if count]
        parts = paddle.split(x, [counts[place] for place in active]) if len(active) > 1 else [x]
        experts = [self._sub_layers[str(self.numbers[place])] for place in active]
        return paddle.concat([expert(part) for expert, part in zip(experts, parts, strict=True)])


def owned_experts(moe: MoeConfig) -> list[int]:
    """Global numbers of the experts of one process: a consecutive share of each modality, text first."""
    share = moe.num_experts // moe.expert_ranks
    first = moe.expert_rank * share
    return [
        modality * moe.num_experts + first + number
        for modality in range(moe.num_modalities)
        for number in range(share)
    ]
