"""A mixture-of-experts layer: routed experts of each modality, plus shared experts that see every token."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from erniekit.layers import Mlp
from erniekit.moe.config import MoeConfig
from erniekit.moe.dispatch import Dispatcher, LocalDispatcher
from erniekit.moe.experts import Experts
from erniekit.moe.router import (
    NO_ROUTER_LOSSES,
    Gate,
    ModalityIndex,
    MoeStatics,
    RouterLossFlags,
    RouterOutput,
    route,
)


class MoeLayer(nn.Layer):
    """Routed and shared experts, in place of the MLP of a dense layer."""

    def __init__(self, hidden_size: int, moe: MoeConfig, dtype: str) -> None:
        super().__init__()
        self.moe = moe
        self.gate = Gate(hidden_size, moe)
        self.moe_statics = MoeStatics(moe)
        self.experts = Experts(hidden_size, moe, dtype)
        self.dispatcher: Dispatcher = LocalDispatcher()
        self.shared_experts = (
            Mlp(hidden_size, moe.shared_intermediate_size, dtype) if moe.num_shared_experts else None
        )

    def forward(
        self, x: Tensor, index: ModalityIndex, loss_flags: RouterLossFlags = NO_ROUTER_LOSSES
    ) -> tuple[Tensor, RouterOutput]:
        """[T, hidden] -> [T, hidden], and the statistics of the router."""
        bias = self.moe_statics.e_score_correction_bias
        routing, sums = route(x, index, self.gate, bias, self.moe, loss_flags)
        shared = self.shared_experts
        overlap_fn = None if shared is None else lambda: shared(x)
        experts = self.moe.total_experts
        output, counts = self.dispatcher(x, routing, experts, self.experts, overlap_fn)
        return output, RouterOutput(counts if index.valid else paddle.zeros_like(counts), sums)
