"""A mixture-of-experts layer: routed experts of each modality, plus shared experts that see every token."""

from __future__ import annotations

from paddle import Tensor, nn

from erniekit.models.config import MoeConfig
from erniekit.models.layers import Mlp
from erniekit.moe.dispatch import Dispatcher, LocalDispatcher
from erniekit.moe.experts import Experts
from erniekit.moe.router import Gate, ModalityIndex, MoeStatics, route


class MoeLayer(nn.Layer):
    """Stands where a dense layer has its MLP."""

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

    def forward(self, x: Tensor, index: ModalityIndex) -> tuple[Tensor, Tensor]:
        """[T, hidden] -> [T, hidden], and int64 [modalities * experts] tokens that chose each expert."""
        routing = route(x, index, self.gate, self.moe_statics.e_score_correction_bias, self.moe)
        output, counts = self.dispatcher(x, routing, len(self.experts), self.experts.compute)
        if self.shared_experts is not None:
            output = output + self.shared_experts(x)
        return output, counts
