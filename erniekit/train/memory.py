"""The memory that training needs in one process, computed from shapes alone: no weights are read.

Bytes, where b is the width of the compute dtype (2 for bfloat16), N the number of processes that shard a tensor (all
processes, or those with the same experts; 1 where parallel.shard does not shard it) and T the tokens of a packed row
(data.max_length) over parallel.context:

- weights: b / N per parameter, or what it is quantized to; a reference model needs the same again;
- dequantized weights: b per weight of the largest matrix, or stack of a layer's experts, which one product uses;
- gradients: b per trained parameter; with several rows a step 4, in which they are summed, and b only of the largest
  decoder layer and of what is outside of the layers; 4 / N where gradients are sharded;
- optimizer: (8 + 4) / N per trained parameter, for the moments and the float32 master;
- communication between several processes: b + 4 per trained parameter of the largest decoder layer and, with
  parallel.shard parameters, the whole weights of two layers;
- activations: see `activation_bytes`.

Not counted: fragmentation of the allocator, the CUDA context and NCCL's buffers, for which `USABLE` leaves room, and
experts that receive more than an even share of the tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from erniekit.checkpoint.hub import spec_bytes
from erniekit.checkpoint.quantizer import stored_bytes
from erniekit.config import Config
from erniekit.config.choices import SHARDS, Quantize, Shard
from erniekit.models.config import ErnieConfig, VisionConfig
from erniekit.models.specs import TensorSpec, is_expert_tensor, is_router_tensor
from erniekit.parallel.data_parallel import REST, by_layer
from erniekit.parallel.fully_sharded import is_fully_sharded
from erniekit.train.recompute import BackwardPlan

USABLE = 0.92
"""The share of a device's memory that a plan may use."""

_MOMENT_BYTES = 8
_MASTER_BYTES = 4
_SUM_BYTES = 4
_WIDE = 4


@dataclass(frozen=True)
class ShardingPlan:
    """How processes share a model.

    experts: the expert-parallel degree; dense, replicas: the number of processes with the same dense weights, and
    with the same experts; shard: parallel.shard.
    """

    experts: int = 1
    dense: int = 1
    replicas: int = 1
    shard: Shard = "none"

    def is_sharded(self, spec: TensorSpec, what: Shard) -> bool:
        """Whether a tensor's optimizer state, gradient or values (`what`) are sharded."""
        if is_router_tensor(spec.name) or SHARDS.index(self.shard) < SHARDS.index(what):
            return False
        if what == "parameters" and not is_fully_sharded(spec.name):
            return False
        return self.num_holders(spec) > 1

    def share(self, spec: TensorSpec, what: Shard) -> float:
        """The share of a tensor's optimizer state, gradient or values (`what`) in one process."""
        share = 1 / self.experts if is_expert_tensor(spec.name) else 1.0
        return share / self.num_holders(spec) if self.is_sharded(spec, what) else share

    def num_holders(self, spec: TensorSpec) -> int:
        """The number of processes that hold a tensor, or a shard of it."""
        return self.replicas if is_expert_tensor(spec.name) else self.dense


@dataclass(frozen=True)
class MemoryPlan:
    """The numbers of parameters of a model, and the memory of one process that trains it, in bytes.

    reference_bytes: the reference model of preference training. cached_bytes: the whole model that computes a cached
    reference in the main process, before the first step. communication_bytes: buffers of collectives.
    dequantized_bytes: see the function of that name.
    """

    parameters: int
    trained: int
    weight_bytes: int
    reference_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    communication_bytes: int
    activation_bytes: int = 0
    cached_bytes: int = 0
    dequantized_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The peak of a step, or of computing a cached reference where that is more."""
        always = self.weight_bytes + self.activation_bytes + self.dequantized_bytes
        training = (
            self.reference_bytes + self.gradient_bytes + self.optimizer_bytes + self.communication_bytes
        )
        return always + max(training, self.cached_bytes)

    def fits(self, device_bytes: float) -> bool:
        """Whether it fits into `USABLE` of the memory of a device."""
        return self.total_bytes <= USABLE * device_bytes


def plan_model(
    specs: Sequence[TensorSpec],
    trained: Sequence[str],
    *,
    rows_per_step: int,
    sharding: ShardingPlan = ShardingPlan(),
    reference: bool = False,
    cached: bool = False,
    activations: int = 0,
    quantize: Quantize = "none",
) -> MemoryPlan:
    """The memory for `specs`, all parameters of the model, of which those named in `trained` are trained.

    reference: a reference model, without adapters, is in memory too, sharded like the trained one; cached: one process
    holds the whole reference model before the first step. activations: from `activation_bytes`. quantize: of the
    frozen weights, as in model.quantize.
    """
    names = set(trained)
    by_name = {spec.name: spec for spec in specs}
    layers = by_layer(by_name)
    communication = max(
        (
            _communication_bytes([by_name[name] for name in layer], names, sharding, quantize)
            for number, layer in layers.items()
            if number != REST
        ),
        default=0.0,
    )
    weights = reference_weights = gradients = optimizer = 0.0
    if rows_per_step > 1:
        waiting = {
            number: sum(_waiting_bytes(by_name[name], sharding) for name in layer if name in names)
            for number, layer in layers.items()
        }
        gradients = waiting.pop(REST, 0.0) + max(waiting.values(), default=0.0)
    for spec in specs:
        size = sharding.share(spec, "parameters") * stored_bytes(spec, quantize)
        weights += size
        if reference and ".lora_" not in spec.name:
            reference_weights += size
        if spec.name not in names:
            continue
        wide = spec.dtype == "F32"
        # Gradients of several rows are summed in float32 (`AdamW.collect_gradients`).
        summed = rows_per_step > 1 or sharding.is_sharded(spec, "gradients")
        gradients += sharding.share(spec, "gradients") * (
            spec.size * _SUM_BYTES if summed else spec_bytes(spec)
        )
        optimizer += (
            sharding.share(spec, "optimizer") * spec.size * (_MOMENT_BYTES + (0 if wide else _MASTER_BYTES))
        )
        if sharding.is_sharded(spec, "optimizer") and not sharding.is_sharded(spec, "parameters"):
            # The optimizer has a copy of its shard of weights that are not sharded.
            optimizer += sharding.share(spec, "optimizer") * spec_bytes(spec)
    return MemoryPlan(
        parameters=sum(spec.size for spec in specs),
        trained=sum(spec.size for spec in specs if spec.name in names),
        weight_bytes=round(weights),
        reference_bytes=round(reference_weights),
        gradient_bytes=round(gradients),
        optimizer_bytes=round(optimizer),
        communication_bytes=round(communication),
        activation_bytes=activations,
        cached_bytes=sum(stored_bytes(s, quantize) for s in specs if ".lora_" not in s.name) if cached else 0,
    )


def dequantized_bytes(architecture: ErnieConfig, expert: int, dtype_bytes: int) -> int:
    """Memory of one weight that a product dequantizes: of all experts of this process at once, or of a dense layer."""
    hidden, moe = architecture.hidden_size, architecture.moe
    rows = max(architecture.intermediate_size, architecture.num_attention_heads * architecture.head_dim)
    if moe is not None:
        # Gate and up are one matrix.
        rows = max(rows, moe.num_experts // expert * 2 * max(moe.intermediate_sizes))
    return rows * hidden * dtype_bytes


def _waiting_bytes(spec: TensorSpec, sharding: ShardingPlan) -> float:
    """The gradient of a row before it is added to the sum of the step; 0 for float32, which is the sum itself, and
    where it is reduced at once."""
    if spec.dtype == "F32" or sharding.is_sharded(spec, "gradients"):
        return 0.0
    return sharding.share(spec, "gradients") * spec_bytes(spec)


def _communication_bytes(
    layer: Sequence[TensorSpec], trained: set[str], sharding: ShardingPlan, quantize: Quantize
) -> float:
    """For a decoder layer: gradients in their own dtype and in float32, and whole weights of it and the next layer."""
    total = 0.0
    for spec in layer:
        share = 1 / sharding.experts if is_expert_tensor(spec.name) else 1.0
        if sharding.is_sharded(spec, "parameters"):
            total += 2 * share * stored_bytes(spec, quantize)
        if spec.name in trained and sharding.num_holders(spec) > 1:
            total += share * (spec_bytes(spec) + _SUM_BYTES * spec.size)
    return total


def activation_bytes(
    architecture: ErnieConfig, config: Config, dtype_bytes: int, trained: Collection[str], plan: BackwardPlan
) -> int:
    """Memory of activations at the peak of a row of image tokens only, for one process.

    Until the backward pass the model keeps the input of each recomputed layer, and all activations of the other layers
    with a backward pass. The peak is the largest of:
    - in the loss, what is kept, the logits of loss.chunk_tokens tokens and twice the gradient of the head;
    - in the highest layer, what is kept, the gradients of that layer and of the head;
    - in the highest recomputed layer of the decoder and of the vision tower, where the layers above keep nothing any
      more, the activations of that layer as well;
    - a layer or block without a backward pass.
    """
    # Images are not split: one process may hold all images of a row.
    tokens, image_tokens = -(-config.data.max_length // config.parallel.context), config.data.max_length
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
        steps = [image_tokens * dtype_bytes * elements for elements in [*[block] * vision.depth, resampler]]
        step_input = image_tokens * dtype_bytes * vision.spatial_dim
        vision_kept = _kept(steps, step_input, plan.vision, plan.recomputed_vision)
        features = image_tokens * dtype_bytes * 2 * architecture.hidden_size
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
