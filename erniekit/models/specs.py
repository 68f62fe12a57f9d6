"""Names, shapes and element types of every tensor of a checkpoint in the Hub's `-PT` layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from erniekit.models.config import ErnieConfig, VisionConfig


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its Hub name, its safetensors element type ("F32", "BF16", ...) and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def is_expert_tensor(name: str) -> bool:
    """Whether a parameter or adapter belongs to a routed expert, which not every process has."""
    return ".mlp.experts." in name


def is_router_tensor(name: str) -> bool:
    """Whether a tensor is a router weight or correction bias, which are always float32."""
    return ".mlp.gate.weight" in name or name.endswith("e_score_correction_bias")


def is_quantized_tensor(name: str) -> bool:
    """Whether model.quantize covers a tensor: a linear layer of a decoder layer, including experts, but no router.

    Vision tower and resampler, a few percent of the weights, are not quantized: errors in features affect every layer.
    """
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


def is_vocab_tensor(name: str) -> bool:
    """Whether a tensor has a row per token id: the embedding, and a head that is not tied to it."""
    return name in ("model.embed_tokens.weight", "lm_head.weight")


def parameter_specs(config: ErnieConfig, dtype: str = "F32") -> list[TensorSpec]:
    """Every tensor of the model, in the order of its layers.

    Linear weights are [out, in]. The gate of a text MoE is [experts, hidden], a VL model's
    [hidden, experts], as in the released `-PT` checkpoints that transformers and vLLM read.
    Router tensors are F32, all others `dtype`.
    """
    shapes: list[tuple[str, tuple[int, ...]]] = []
    if config.vision is not None:
        shapes += _vision_tower(config.vision)
    shapes.append(("model.embed_tokens.weight", (config.vocab_size, config.hidden_size)))
    for index in range(config.num_hidden_layers):
        shapes += _decoder_layer(config, index)
    shapes.append(("model.norm.weight", (config.hidden_size,)))
    if config.vision is not None:
        shapes += _resampler(config.vision, config.hidden_size)
    if not config.tie_word_embeddings:
        shapes.append(("lm_head.weight", (config.vocab_size, config.hidden_size)))
    return [TensorSpec(name, "F32" if is_router_tensor(name) else dtype, shape) for name, shape in shapes]


_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _mlp(prefix: str, hidden: int, width: int) -> _Shapes:
    yield f"{prefix}.gate_proj.weight", (width, hidden)
    yield f"{prefix}.up_proj.weight", (width, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, width)


def _decoder_layer(config: ErnieConfig, index: int) -> _Shapes:
    prefix, hidden = f"model.layers.{index}", config.hidden_size
    query, key = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    yield f"{prefix}.self_attn.q_proj.weight", (query, hidden)
    yield f"{prefix}.self_attn.k_proj.weight", (key, hidden)
    yield f"{prefix}.self_attn.v_proj.weight", (key, hidden)
    yield f"{prefix}.self_attn.o_proj.weight", (hidden, query)
    if config.moe is not None and index in config.moe.sparse_layers:
        yield from _moe(config, f"{prefix}.mlp")
    else:
        yield from _mlp(f"{prefix}.mlp", hidden, config.intermediate_size)
    yield f"{prefix}.input_layernorm.weight", (hidden,)
    yield f"{prefix}.post_attention_layernorm.weight", (hidden,)


def _moe(config: ErnieConfig, prefix: str) -> _Shapes:
    moe, hidden = config.moe, config.hidden_size
    assert moe is not None
    gate = (hidden, moe.num_experts) if config.family == "vl" else (moe.num_experts, hidden)
    for modality in range(moe.num_modalities):
        yield f"{prefix}.gate.weight" + ("_1" if modality else ""), gate
    yield f"{prefix}.moe_statics.e_score_correction_bias", (moe.num_modalities, moe.num_experts)
    for modality, width in enumerate(moe.intermediate_sizes):
        for expert in range(moe.num_experts):
            yield from _mlp(f"{prefix}.experts.{modality * moe.num_experts + expert}", hidden, width)
    if moe.num_shared_experts:
        yield from _mlp(f"{prefix}.shared_experts", hidden, moe.shared_intermediate_size)


def _affine(prefix: str, out: int, *inner: int) -> _Shapes:
    yield f"{prefix}.weight", (out, *inner)
    yield f"{prefix}.bias", (out,)


def _vision_tower(vision: VisionConfig) -> _Shapes:
    width = vision.hidden_size
    yield "vision_model.patch_embed.proj.weight", (width, vision.patch_dim)
    for index in range(vision.depth):
        prefix = f"vision_model.blocks.{index}"
        yield from _affine(f"{prefix}.norm1", width)
        yield from _affine(f"{prefix}.norm2", width)
        yield from _affine(f"{prefix}.attn.qkv", 3 * width, width)
        yield from _affine(f"{prefix}.attn.proj", width, width)
        yield from _affine(f"{prefix}.mlp.fc1", vision.intermediate_size, width)
        yield from _affine(f"{prefix}.mlp.fc2", width, vision.intermediate_size)
    yield from _affine("vision_model.ln", width)


def _resampler(vision: VisionConfig, hidden: int) -> _Shapes:
    prefix, width = "model.resampler_model", vision.spatial_dim
    for name, inner in (("spatial_linear", width), ("temporal_linear", width * vision.temporal_merge_size)):
        yield from _affine(f"{prefix}.{name}.0", width, inner)
        yield from _affine(f"{prefix}.{name}.2", width, width)
        yield from _affine(f"{prefix}.{name}.3", width)
    yield from _affine(f"{prefix}.mlp", hidden, width)
    yield f"{prefix}.after_norm.weight", (hidden,)
