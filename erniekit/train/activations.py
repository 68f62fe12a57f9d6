"""The memory of activations at the peak of a packed sequence, computed from shapes alone.

T: the tokens of a sequence over parallel.context. Images are not split: one process may hold all of a sequence.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from erniekit.config import Config
from erniekit.models.config import ErnieConfig, VisionConfig
from erniekit.train.recompute import BackwardPlan

_WIDE = 4


@dataclass(frozen=True)
class RowShape:
    """A packed sequence: its tokens, those made from images and videos, and those with a loss."""

    tokens: int
    media: int
    loss: int

    def clipped(self, largest: RowShape) -> RowShape:
        """The sizes, where they are not above those of another sequence."""
        return RowShape(
            min(self.tokens, largest.tokens),
            min(self.media, largest.media),
            min(self.loss, largest.loss),
        )


def full_row(config: Config, architecture: ErnieConfig) -> RowShape:
    """The largest sequence of data.max_length tokens: all have a loss, and all may be tokens of images."""
    length = config.data.max_length
    return RowShape(length, length if architecture.vision is not None else 0, length)


def activation_bytes(
    architecture: ErnieConfig,
    config: Config,
    dtype_bytes: int,
    trained: Collection[str],
    plan: BackwardPlan,
    row: RowShape,
) -> int:
    """Memory of activations at the peak of a row, for one process.

    Until the backward pass the model keeps the input of each recomputed layer, and all activations of the other layers
    with a backward pass. The peak is the largest of:
    - in the loss, what is kept, the logits of loss.chunk_tokens tokens and twice the gradient of the head;
    - in the highest layer, what is kept, the gradients of that layer and of the head;
    - in the highest recomputed layer of the decoder and of the vision tower, where the layers above keep nothing any
      more, the activations of that layer as well;
    - a layer or block without a backward pass.
    """
    tokens = -(-row.tokens // config.parallel.context)
    layers = [
        tokens * _layer_bytes(architecture, number, config, dtype_bytes)
        for number in range(architecture.num_hidden_layers)
    ]
    layer_input = tokens * architecture.hidden_size * dtype_bytes
    layer_gradient = tokens * _gradient_bytes(architecture, dtype_bytes)
    steps: list[int] = []
    vision_kept = features = step_input = 0
    if (vision := architecture.vision) is not None:
        block, resampler = _block_elements(vision), 12 * vision.spatial_dim
        steps = [row.media * dtype_bytes * elements for elements in [*[block] * vision.depth, resampler]]
        step_input = row.media * dtype_bytes * vision.spatial_dim
        vision_kept = _kept(steps, step_input, plan.vision, plan.recomputed_vision)
        features = row.media * dtype_bytes * 2 * architecture.hidden_size
    # Input and output of the final norm, the hidden states of loss tokens, and two gradients of them.
    before = vision_kept + features + 5 * layer_input
    kept = before + _kept(layers, layer_input, plan.layers, plan.recomputed_layers)
    head = _head_gradient_bytes(architecture, trained)
    logits = config.loss.chunk_tokens * architecture.vocab_size * (2 * dtype_bytes + 2 * _WIDE)
    again = [layers[number] for number in plan.recomputed_layers]
    inputs = len(again) * layer_input
    again_vision = [steps[number] for number in plan.recomputed_vision]
    frozen = [*layers[: plan.layers.start], *steps[: plan.vision.start]]
    return max(
        kept + logits + 2 * head,
        kept + layer_gradient + head,
        before + inputs + max(again, default=0) + layer_gradient + head,
        # The gradients of a block are less than its activations.
        vision_kept + 2 * max(again_vision, default=0) + head,
        before + max(frozen, default=0),
    )


def _kept(layers: Sequence[int], layer_input: int, backward: range, recomputed: range) -> int:
    """What layers keep until the backward pass: all activations, or their input."""
    return sum(layer_input if number in recomputed else layers[number] for number in backward)


def _layer_bytes(architecture: ErnieConfig, number: int, config: Config, b: int) -> int:
    """The activations of one decoder layer per token, kept for its backward pass."""
    hidden, moe = architecture.hidden_size, architecture.moe
    query = architecture.num_attention_heads * architecture.head_dim
    key = architecture.num_key_value_heads * architecture.head_dim
    # Normalised input, projections, rotated queries and keys, output of attention, both residual sums; where norms and
    # rotation are composed, their inputs in float32.
    elements = 4 * hidden + (query + 2 * key) + (query + key) + 2 * query
    is_composed = config.kernels.backend in ("paddle", "plain")
    wide = 4 * hidden + 2 * (query + key) if is_composed else 0
    if moe is None or number not in moe.sparse_layers:
        return b * (elements + hidden + 3 * architecture.intermediate_size) + _WIDE * wide
    wide += hidden + 4 * moe.num_experts
    elements += 3 * moe.shared_intermediate_size + 2 * hidden
    # For each expert of a token: input, gate, up and output (`grouped_mlp`); with dropout of adapters also its inputs,
    # results and masks, and sums with adapters; with expert parallelism also the buffers received and sent back.
    width = max(moe.intermediate_sizes)
    pair = 2 * hidden + 2 * width
    if config.lora.enabled and config.lora.dropout:
        pair += 2 * hidden + 3 * width
    if config.parallel.expert > 1:
        pair += 2 * hidden
    return b * (elements + moe.top_k * pair) + _WIDE * wide


def _gradient_bytes(architecture: ErnieConfig, b: int) -> int:
    """The gradients of one layer per token that exist at one time, for the widest kind of layer."""
    hidden, moe = architecture.hidden_size, architecture.moe
    dense = 2 * hidden + 3 * architecture.intermediate_size
    routed = 0 if moe is None else moe.top_k * (2 * hidden + 3 * max(moe.intermediate_sizes))
    return b * max(dense, routed)


def _head_gradient_bytes(architecture: ErnieConfig, trained: Collection[str]) -> int:
    """The float32 gradient of the head, or of the embedding where they are tied; 0 where it is frozen."""
    head = "model.embed_tokens.weight" if architecture.tie_word_embeddings else "lm_head.weight"
    return _WIDE * architecture.vocab_size * architecture.hidden_size if head in trained else 0


def _block_elements(vision: VisionConfig) -> int:
    """Activations of a block of the vision tower for the patches of a token: norms, queries, keys and values and their
    rotation, attention, projections and residuals, and three activations of the MLP."""
    return vision.spatial_merge_size**2 * (11 * vision.hidden_size + 3 * vision.intermediate_size)
