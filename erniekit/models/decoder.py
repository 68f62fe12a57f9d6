"""The language model: embeddings, decoder layers and the output head."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from paddle import Tensor, nn

from erniekit.layers import Embedding, Mlp, RMSNorm
from erniekit.models.attention import Attend, Attention
from erniekit.models.config import ErnieConfig
from erniekit.models.layer_runner import DirectLayers, LayerRunner
from erniekit.moe.layer import MoeLayer
from erniekit.moe.router import NO_ROUTER_LOSSES, ModalityIndex, RouterLossFlags, RouterOutput, RouterSums


class DecoderOutput(NamedTuple):
    """`hidden` [T, hidden] after the final norm; `routers` by index of the layers that have one."""

    hidden: Tensor
    routers: dict[int, RouterOutput]


class DecoderLayer(nn.Layer):
    """Attention and MLP or MoE, each behind a norm and a residual."""

    def __init__(self, config: ErnieConfig, index: int, dtype: str) -> None:
        super().__init__()
        self.self_attn = Attention(config, index, dtype)
        moe = config.moe
        self.mlp = (
            MoeLayer(config.hidden_size, moe, dtype)
            if moe is not None and index in moe.sparse_layers
            else Mlp(config.hidden_size, config.intermediate_size, dtype)
        )
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def forward(
        self, x: Tensor, rotation: Tensor, index: ModalityIndex, attend: Attend, loss_flags: RouterLossFlags
    ) -> tuple[Tensor, RouterOutput | None]:
        """[T, hidden] -> [T, hidden], and the router output of a MoE layer."""
        attended = self.self_attn(self.input_layernorm(x), rotation, attend)
        x, normal = self.post_attention_layernorm.add(attended, x)
        if isinstance(self.mlp, MoeLayer):
            output, router = self.mlp(normal, index, loss_flags)
            return x + output, router
        return x + self.mlp(normal), None


class Decoder(nn.Layer):
    """The part of a checkpoint under `model.`, without the resampler's computation."""

    def __init__(self, config: ErnieConfig, dtype: str) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.LayerList(DecoderLayer(config, i, dtype) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        # Training may replace it.
        self.layer_runner: LayerRunner = DirectLayers()

    def forward(
        self,
        x: Tensor,
        rotation: Tensor,
        index: ModalityIndex,
        attend: Attend,
        loss_flags: RouterLossFlags = NO_ROUTER_LOSSES,
    ) -> DecoderOutput:
        """Embedded row [T, hidden] through all layers and the final norm."""
        routers = {}
        for number, layer in enumerate(self.layers):
            flat = partial(_flat, layer, rotation=rotation, index=index, attend=attend, loss_flags=loss_flags)
            x, *rest = self.layer_runner(number, flat, x)
            if rest:
                routers[number] = _router_output(rest, loss_flags)
        return DecoderOutput(self.norm(x), routers)


def _flat(
    layer: DecoderLayer,
    x: Tensor,
    *,
    rotation: Tensor,
    index: ModalityIndex,
    attend: Attend,
    loss_flags: RouterLossFlags,
) -> tuple[Tensor, ...]:
    """Run a layer for a `LayerRunner`, which takes tensors only: returns the output and, for a layer with a router, the
    counts and the requested sums."""
    x, router = layer(x, rotation, index, attend, loss_flags)
    if router is None:
        return (x,)
    return (x, router.counts, *(found for found in router.sums if found is not None))


def _router_output(flat: list[Tensor], loss_flags: RouterLossFlags) -> RouterOutput:
    """The inverse of `_flat`: the router output from the counts and the sums that `loss_flags` requests."""
    counts, *found = flat
    sums = iter(found)
    return RouterOutput(counts, RouterSums(*(next(sums) if wanted else None for wanted in loss_flags)))
