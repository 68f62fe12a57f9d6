"""Predicts the memory of activations for a packed sequence, at each moment that may be the peak of a step.

Computed from shapes alone, from the tensors that the code of the kernels keeps for the backward pass. Sizes are per
process, in elements of the compute dtype unless they are float32. On a GPU, operators that Triton or flash attention
fuse only keep their inputs; on a CPU, SwiGLU, the rotation of the vision tower and attention are composed, and keep
more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from erniekit.config import Config
from erniekit.kernels.attention import kept_weights
from erniekit.models.config import ErnieConfig, VisionConfig
from erniekit.train.recompute import BackwardPlan

_WIDE = 4
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class RowShape:
    """The sizes of a packed sequence.

    tokens: all tokens; media: tokens of images and videos; loss: loss tokens; document: tokens of a typical document;
    frame: patches of a typical image or frame. The last two only matter for kernels of CPUs.
    """

    tokens: int
    media: int
    loss: int
    document: int
    frame: int

    def clipped(self, largest: RowShape) -> RowShape:
        """The smaller of each size and that of another sequence."""
        return RowShape(
            tokens=min(self.tokens, largest.tokens),
            media=min(self.media, largest.media),
            loss=min(self.loss, largest.loss),
            document=min(self.document, largest.document),
            frame=min(self.frame, largest.frame),
        )


def full_row(config: Config, architecture: ErnieConfig) -> RowShape:
    """The largest possible sequence of data.max_length tokens: one document of images, all of it trained."""
    length, vision = config.data.max_length, architecture.vision
    media = 0 if vision is None else length
    patches = 0 if vision is None else media * vision.spatial_merge_size**2
    return RowShape(length, media, length, length, patches)


class Moment(NamedTuple):
    """One moment of a step.

    activations: in bytes; first_layer: gradients exist for the decoder layers from this one on; has_vision: and for the
    vision tower.
    """

    activations: int
    first_layer: int
    has_vision: bool = False


@dataclass(frozen=True)
class ActivationPlan:
    """The activations of a model for a row.

    trained: names of the trained tensors; dtype_bytes: bytes per element of the compute dtype; on_cpu: with the kernels
    of a CPU.
    """

    architecture: ErnieConfig
    config: Config
    trained: Collection[str]
    row: RowShape
    dtype_bytes: int
    on_cpu: bool = False

    def moments(self, plan: BackwardPlan) -> list[Moment]:
        """The moments that may be the peak: the loss, the backward pass of each layer, and the forward pass of a layer
        without a backward pass.

        Until its backward pass, a recomputed layer only keeps its input, and any other layer all its activations.
        """
        architecture, row, b = self.architecture, self.row, self.dtype_bytes
        count = architecture.num_hidden_layers
        # Images are not split: one process may hold all images of a row.
        tokens = -(-row.tokens // self.config.parallel.context)
        layers = [tokens * size for size in self.layer_sizes()]
        layer_input = tokens * architecture.hidden_size * b
        gradient = tokens * self._gradient_elements() * b
        steps: list[int] = []
        vision_kept = features = vision_gradient = step_input = 0
        if (vision := architecture.vision) is not None and row.media:
            patches = row.media * vision.spatial_merge_size**2
            steps = [row.media * b * elements for elements in self._vision_elements(vision)]
            step_input = row.media * b * vision.spatial_dim
            vision_kept = _kept(steps, step_input, plan.vision, plan.recomputed_vision)
            # The patches as uint8, and normalised.
            vision_kept += patches * vision.patch_dim * (1 + b)
            features = row.media * b * 2 * architecture.hidden_size
            vision_gradient = patches * b * 2 * (vision.hidden_size + vision.intermediate_size)
        # The loss has input and output of the final norm, the hidden states of loss tokens, and two gradients of them.
        # A layer has its output and the gradient of the output.
        before = vision_kept + features
        head = self._head_gradient_bytes()
        if b != _WIDE:
            # Also rounded to the compute dtype.
            head += head * b // _WIDE
        moments = [
            Moment(
                before + _kept(layers, layer_input, plan.layers, plan.recomputed_layers) + self._loss_bytes(),
                count,
            )
        ]
        for number in plan.layers:
            below = range(plan.layers.start, number)
            kept = (
                _kept(layers, layer_input, below, plan.recomputed_layers) + layers[number] + 2 * layer_input
            )
            moments.append(Moment(before + kept + gradient + head, number + 1))
        for number in plan.vision if steps else ():
            below = range(plan.vision.start, number)
            kept = _kept(steps, step_input, below, plan.recomputed_vision) + steps[number] + 2 * step_input
            moments.append(Moment(kept + vision_gradient + head, 0, True))
        frozen = [*layers[: plan.layers.start], *steps[: plan.vision.start]]
        moments.append(Moment(before + 2 * layer_input + max(frozen, default=0), count))
        if _EMBEDDING in self.trained:
            # The gradient of the lookup, which is added to that of a tied head.
            gradient = architecture.vocab_size * architecture.hidden_size * b
            moments.append(Moment(layer_input + head + gradient, 0, True))
        return moments

    def layer_sizes(self) -> list[int]:
        """The activations of each decoder layer per token, in bytes."""
        return [self._layer_bytes(number) for number in range(self.architecture.num_hidden_layers)]

    def vision_sizes(self) -> list[int]:
        """The activations of each block of the vision tower and of the resampler per token, in elements."""
        vision = self.architecture.vision
        return [] if vision is None else self._vision_elements(vision)

    def _layer_bytes(self, number: int) -> int:
        """The activations of one decoder layer per token, kept for its backward pass."""
        architecture, config, b = self.architecture, self.config, self.dtype_bytes
        hidden, moe = architecture.hidden_size, architecture.moe
        query = architecture.num_attention_heads * architecture.head_dim
        key = architecture.num_key_value_heads * architecture.head_dim
        # Input, both normalised inputs, the first residual sum; queries, keys, values, and the output of attention.
        elements = 4 * hidden + 2 * query + 2 * key
        wide = 0
        if config.kernels.backend in ("paddle", "plain"):
            # Norms and rotation are composed: their inputs in float32.
            wide = 4 * hidden + 2 * (query + key)
        if b == _WIDE:
            # Fused attention has only 16-bit types.
            group = architecture.num_attention_heads // architecture.num_key_value_heads
            length = self.row.document
            weights = kept_weights(length, group, causal=True) if length else 0
            wide += architecture.num_attention_heads * weights // max(1, length)
        # Gate, up and their product; composed, also the bounded gate and its SiLU.
        gates = 5 if self.on_cpu else 3
        if moe is None or number not in moe.sparse_layers:
            return b * (elements + gates * architecture.intermediate_size) + _WIDE * wide
        # The router's input in float32, its logits, its probabilities, and these with the correction bias.
        wide += (0 if b == _WIDE else hidden) + 3 * moe.num_experts
        elements += gates * moe.shared_intermediate_size
        # For each expert of a token: input, gate, up and output (`grouped_mlp`); with dropout of adapters, also the
        # inputs, outputs and masks of dropout, and sums with adapters; with expert parallelism, also the rows received
        # and sent back.
        width = max(moe.intermediate_sizes)
        pair = 2 * hidden + 2 * width
        if config.lora.enabled and config.lora.dropout:
            pair += 2 * hidden + 3 * width
        if config.parallel.expert > 1:
            pair += 2 * hidden
        return b * (elements + moe.top_k * pair) + _WIDE * wide

    def _gradient_elements(self) -> int:
        """The gradients of activations in one layer per token, in elements, for the widest kind of layer.

        On a CPU, the experts' SwiGLU and its gradient make copies.
        """
        architecture = self.architecture
        hidden, moe = architecture.hidden_size, architecture.moe
        dense = 2 * hidden + 2 * architecture.intermediate_size
        if moe is None:
            return dense
        width = max(moe.intermediate_sizes)
        pair = hidden + 8 * width if self.on_cpu else 2 * hidden + 3 * width
        routed = 2 * hidden + moe.top_k * pair
        return routed if len(moe.sparse_layers) == architecture.num_hidden_layers else max(dense, routed)

    def _loss_bytes(self) -> int:
        """The logits of loss.chunk_tokens tokens, and the float32 gradient of the head and that of a chunk."""
        loss = -(-self.row.loss // self.config.parallel.context)
        chunk = min(self.config.loss.chunk_tokens, loss)
        chunks = 1 if chunk == loss else 2
        # The loss overwrites the logits with their gradient. The composed form also has both in float32.
        is_composed = self.config.kernels.backend in ("paddle", "plain") and not self.on_cpu
        logits = chunk * self.architecture.vocab_size * (self.dtype_bytes + 2 * _WIDE * is_composed)
        return logits + chunks * self._head_gradient_bytes()

    def _head_gradient_bytes(self) -> int:
        """The float32 gradient of the head, or of a tied embedding, in bytes; 0 if it is frozen."""
        architecture = self.architecture
        head = _EMBEDDING if architecture.tie_word_embeddings else _HEAD
        return _WIDE * architecture.vocab_size * architecture.hidden_size if head in self.trained else 0

    def _vision_elements(self, vision: VisionConfig) -> list[int]:
        """See `vision_sizes`.

        A block keeps inputs and outputs of both norms, queries, keys, values, the output of attention, and three
        activations of the MLP; the composed form also keeps the rotated halves.
        """
        merged = vision.spatial_merge_size**2
        block = 8 * vision.hidden_size + 3 * vision.intermediate_size
        if self.on_cpu:
            block += 2 * vision.hidden_size
        if self.dtype_bytes == _WIDE and self.row.frame:
            weights = kept_weights(self.row.frame, 1, causal=False)
            block += vision.num_heads * weights // self.row.frame
        return [*[merged * block] * vision.depth, 12 * vision.spatial_dim]


def _kept(layers: Sequence[int], layer_input: int, backward: range, recomputed: range) -> int:
    """The sum over the layers in `backward`: the input of recomputed layers, and all activations of the others."""
    return sum(layer_input if number in recomputed else layers[number] for number in backward)
