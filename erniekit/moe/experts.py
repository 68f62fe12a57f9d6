"""The experts of a layer, over tokens that are sorted by expert."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from erniekit.kernels.grouped_gemm import ExpertRows
from erniekit.kernels.grouped_mlp import ExpertWeight, grouped_mlp
from erniekit.layers import QuantizedParameter, weight_of
from erniekit.moe.config import MoeConfig


class StackedLinear(nn.Layer):
    """One linear layer of all experts of a modality: `weight` [E, out, in].

    modules: the names of the Hub's linear layers that `weight` holds, below the layer's experts and in the order of its
    rows, such as "3.gate_proj", "3.up_proj".
    """

    weight: Tensor | QuantizedParameter

    def __init__(self, modules: Sequence[str], experts: int, out: int, inner: int, dtype: str) -> None:
        super().__init__()
        self.modules = list(modules)
        self.weight = self.create_parameter(
            [experts, out, inner], dtype=dtype, default_initializer=nn.initializer.Constant(0.0)
        )

    def operand(self) -> ExpertWeight:
        """What the grouped products take."""
        return ExpertWeight(weight_of(self.weight))


class ModalityExperts(nn.Layer):
    """SwiGLU experts of one width. `numbers` are their global numbers; gates come before ups."""

    def __init__(self, numbers: Sequence[int], hidden_size: int, width: int, dtype: str) -> None:
        super().__init__()
        halves = [f"{number}.{half}_proj" for number in numbers for half in ("gate", "up")]
        downs = [f"{number}.down_proj" for number in numbers]
        self.gate_up = StackedLinear(halves, len(numbers), 2 * width, hidden_size, dtype)
        self.down = StackedLinear(downs, len(numbers), hidden_size, width, dtype)

    def forward(self, x: Tensor, rows: ExpertRows) -> Tensor:
        """[n, hidden] sorted by expert -> [n, hidden]."""
        return grouped_mlp(x, self.gate_up.operand(), self.down.operand(), rows)


class Experts(nn.Layer):
    """Text experts 0..E-1 and, in VL models, vision experts E..2E-1, which have a different width.

    With expert parallelism (`MoeConfig.expert_rank`) only the experts of this process exist.
    """

    def __init__(self, hidden_size: int, moe: MoeConfig, dtype: str) -> None:
        super().__init__()
        for modality, numbers in enumerate(owned_experts(moe)):
            width = moe.intermediate_sizes[modality]
            experts = ModalityExperts(numbers, hidden_size, width, dtype)
            self.add_sublayer("vision" if modality else "text", experts)

    def forward(self, x: Tensor, rows: Sequence[ExpertRows | None]) -> Tensor:
        """[n, hidden] sorted by modality, then by expert -> [n, hidden].

        rows: the rows of each modality, None for a modality without rows.
        """
        outputs, start = [], 0
        for experts, modality_rows in zip(self.children(), rows, strict=True):
            if modality_rows is not None:
                part = x if modality_rows.size == x.shape[0] else x[start : start + modality_rows.size]
                outputs.append(experts(part, modality_rows))
                start += modality_rows.size
        return outputs[0] if len(outputs) == 1 else paddle.concat(outputs)


def owned_experts(moe: MoeConfig) -> list[list[int]]:
    """Global numbers of the experts of one process, by modality: a consecutive share of each."""
    share = moe.num_experts // moe.expert_ranks
    first = moe.expert_rank * share
    return [
        [modality * moe.num_experts + first + number for number in range(share)]
        for modality in range(moe.num_modalities)
    ]
