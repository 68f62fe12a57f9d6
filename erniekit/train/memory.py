"""What training takes of the memory of one process, from shapes alone: no weights are read.

Bytes by what they are of, where b is the compute dtype's width (2 for bfloat16), N the processes that spread a tensor
(all, or those that hold the same expert; 1 where parallel.shard does not spread it) and T the tokens of a packed row
(data.max_length) over parallel.context:

- weights: b / N a parameter; a frozen copy for the reference the same again;
- gradients: b + 4 a trained parameter, as rows are summed in float32, or 4 / N where they are spread;
- optimizer: (8 + 4) / N a trained parameter, the moments and the float32 master;
- exchange, with several processes: of the largest decoder layer b + 4 a trained parameter under way and, with
  parallel.shard parameters, the whole weights of two layers;
- activations: what `activation_bytes` says.

What is left out: the allocator's fragments, the CUDA context and NCCL's buffers, for which `USABLE` leaves room, and
experts that get more than their even share of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erniekit.checkpoint.hub import spec_bytes
from erniekit.config import Config
from erniekit.config.choices import SHARDS, Shard
from erniekit.models.config import ErnieConfig, VisionConfig
from erniekit.models.specs import TensorSpec, is_expert_tensor, is_router_tensor
from erniekit.parallel.data_parallel import REST, by_layer
from erniekit.parallel.fully_sharded import is_fully_sharded

USABLE = 0.92
"""The share of a device's memory that a plan may fill."""

_MOMENT_BYTES = 8
_MASTER_BYTES = 4
_SUM_BYTES = 4
_WIDE = 4


@dataclass(frozen=True)
class ShardingPlan:
    """How processes hold a model together.

    experts: how many share the experts that are counted; dense, replicas: how many have the same dense weights, and
    the same experts; shard: parallel.shard.
    """

    experts: int = 1
    dense: int = 1
    replicas: int = 1
    shard: Shard = "none"

    def spreads(self, spec: TensorSpec, what: Shard) -> bool:
        """Whether processes spread of a tensor what parallel.shard `what` spreads."""
        if is_router_tensor(spec.name) or SHARDS.index(self.shard) < SHARDS.index(what):
            return False
        if what == "parameters" and not is_fully_sharded(spec.name):
            return False
        return self.holders(spec) > 1

    def held(self, spec: TensorSpec, what: Shard) -> float:
        """The share of a tensor that one process holds of it."""
        share = 1 / self.experts if is_expert_tensor(spec.name) else 1.0
        return share / self.holders(spec) if self.spreads(spec, what) else share

    def holders(self, spec: TensorSpec) -> int:
        """How many processes have a tensor, or their share of it."""
        return self.replicas if is_expert_tensor(spec.name) else self.dense


@dataclass(frozen=True)
class ModelPlan:
    """Parameters of a model and what training them takes of one process, in bytes.

    reference: the frozen copy of preference training. cached: the whole model that the main process has before the
    first step, to compute a cached reference with. exchange: what processes send each other and wait for.
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

    @property
    def total_bytes(self) -> int:
        """At the peak of a step or, where that is more, while a cached reference is computed."""
        held = self.weight_bytes + self.activation_bytes
        training = (
            self.reference_bytes + self.gradient_bytes + self.optimizer_bytes + self.communication_bytes
        )
        return held + max(training, self.cached_bytes)

    def fits(self, gibibytes: float) -> bool:
        """Whether it fits a device with so much memory, in GiB, of which `USABLE` may be filled."""
        return self.total_bytes <= USABLE * gibibytes * 2**30


def plan_model(
    specs: Sequence[TensorSpec],
    trained: Sequence[str],
    *,
    rows_per_step: int,
    spread: ShardingPlan = ShardingPlan(),
    reference: bool = False,
    cached: bool = False,
    activations: int = 0,
) -> ModelPlan:
    """Add up `specs`, all parameters as they are in memory, of which those named in `trained` are trained.

    reference: the model as it was, without adapters, is in memory once more, held as the trained one is; cached: one
    process has it whole before the first step. activations: of `activation_bytes`.
    """
    # Gradients of several rows are summed in float32 (`AdamW.collect_gradients`).
    sum_bytes = _SUM_BYTES if rows_per_step > 1 else 0
    names = set(trained)
    by_name = {spec.name: spec for spec in specs}
    layers = by_layer(by_name)
    exchange = max(
        (
            _exchange_bytes([by_name[name] for name in layer], names, spread)
            for number, layer in layers.items()
            if number != REST
        ),
        default=0.0,
    )
    weights = frozen = gradients = optimizer = 0.0
    for spec in specs:
        held = spread.held(spec, "parameters") * spec_bytes(spec)
        weights += held
        if reference and ".lora_" not in spec.name:
            frozen += held
        if spec.name not in names:
            continue
        wide = spec.dtype == "F32"
        whole = spec_bytes(spec) + (0 if wide else spec.size * sum_bytes)
        part = spec.size * _SUM_BYTES
        spreads = spread.spreads(spec, "gradients")
        gradients += spread.held(spec, "gradients") * (part if spreads else whole)
        optimizer += (
            spread.held(spec, "optimizer") * spec.size * (_MOMENT_BYTES + (0 if wide else _MASTER_BYTES))
        )
        if spread.spreads(spec, "optimizer") and not spread.spreads(spec, "parameters"):
            # Of weights that are whole the optimizer has its part once more.
            optimizer += spread.held(spec, "optimizer") * spec_bytes(spec)
    return ModelPlan(
        parameters=sum(spec.size for spec in specs),
        trained=sum(spec.size for spec in specs if spec.name in names),
        weight_bytes=round(weights),
        reference_bytes=round(frozen),
        gradient_bytes=round(gradients),
        optimizer_bytes=round(optimizer),
        communication_bytes=round(exchange),
        activation_bytes=activations,
        cached_bytes=sum(spec_bytes(spec) for spec in specs if ".lora_" not in spec.name) if cached else 0,
    )


def _exchange_bytes(layer: Sequence[TensorSpec], trained: set[str], spread: ShardingPlan) -> float:
    """Of a decoder layer: gradients under way, in their own type and float32, and whole weights of it and the next."""
    total = 0.0
    for spec in layer:
        share = 1 / spread.experts if is_expert_tensor(spec.name) else 1.0
        if spread.spreads(spec, "parameters"):
            total += 2 * share * spec_bytes(spec)
        if spec.name in trained and spread.holders(spec) > 1:
            total += share * (spec_bytes(spec) + _SUM_BYTES * spec.size)
    return total


def activation_bytes(
    architecture: ErnieConfig, config: Config, dtype_bytes: int, trained: Sequence[str]
) -> int:
    """Memory of activations at the peak of a row, for one process.

    Kept until the backward pass: with train.recompute the input of every decoder layer, without it all that layers
    keep; of a row whose tokens are all of pictures the resampler's and, where the vision tower is trained, all of its
    blocks. On top is the largest of: the backward pass of a layer, with what it keeps and its gradients beside the
    gradient of the head; the logits of loss.chunk_tokens tokens and that gradient twice; a block of a frozen tower.
    """
    tokens = -(-config.data.max_length // config.parallel.context)
    numbers = range(architecture.num_hidden_layers)
    layers = [_layer_bytes(architecture, number, config.parallel.expert, dtype_bytes) for number in numbers]
    inputs = len(layers) * architecture.hidden_size * dtype_bytes
    kept = tokens * (inputs if config.train.recompute else sum(layers))
    again = max(layers) if config.train.recompute else 0
    head = _head_gradient_bytes(architecture, trained)
    backward = tokens * (again + _gradient_bytes(architecture, dtype_bytes)) + head
    logits = config.loss.chunk_tokens * architecture.vocab_size * (2 * dtype_bytes + 2 * _WIDE)
    block = 0
    if (vision := architecture.vision) is not None:
        # A picture is not cut: one process may have all of a row's.
        pictured = config.data.max_length
        kept += pictured * dtype_bytes * (12 * vision.spatial_dim + 2 * architecture.hidden_size)
        block = pictured * dtype_bytes * _block_elements(vision)
        if any(name.startswith("vision_model.") for name in trained):
            kept += vision.depth * block
    return kept + max(backward, logits + 2 * head, block)


def _layer_bytes(architecture: ErnieConfig, number: int, expert: int, b: int) -> int:
    """What one decoder layer keeps of a token for its backward pass."""
    hidden, moe = architecture.hidden_size, architecture.moe
    query = architecture.num_attention_heads * architecture.head_dim
    key = architecture.num_key_value_heads * architecture.head_dim
    # Normalised input, projections, rotated queries and keys, attention's output, both residual sums; in float32 the
    # two norms' inputs and the rotation.
    elements = 4 * hidden + (query + 2 * key) + (query + key) + 2 * query
    wide = 4 * hidden + 2 * (query + key)
    if moe is None or number not in moe.sparse_layers:
        return b * (elements + hidden + 3 * architecture.intermediate_size) + _WIDE * wide
    wide += hidden + 4 * moe.num_experts
    elements += 3 * moe.shared_intermediate_size + 2 * hidden
    # Of each expert of a token: its input, gate, up, their product, its output, and that in the tokens' order; of
    # experts elsewhere also what arrives and what comes back.
    pair = 3 * hidden + 3 * max(moe.intermediate_sizes) + (2 * hidden if expert > 1 else 0)
    return b * (elements + moe.top_k * pair) + _WIDE * wide


def _gradient_bytes(architecture: ErnieConfig, b: int) -> int:
    """Gradients of a token that are there at one time inside of a layer, of the widest one."""
    hidden, moe = architecture.hidden_size, architecture.moe
    dense = 2 * hidden + 3 * architecture.intermediate_size
    routed = 0 if moe is None else moe.top_k * (2 * hidden + 3 * max(moe.intermediate_sizes))
    return b * max(dense, routed)


def _head_gradient_bytes(architecture: ErnieConfig, trained: Sequence[str]) -> int:
    """The float32 gradient of the head, which is the embedding where they are tied; 0 where it is frozen."""
    head = "model.embed_tokens.weight" if architecture.tie_word_embeddings else "lm_head.weight"
    return _WIDE * architecture.vocab_size * architecture.hidden_size if head in trained else 0


def _block_elements(vision: VisionConfig) -> int:
    """What a block of the vision tower computes for the patches of a token: norms, queries, keys and values and their
    rotation, attention, projections and residuals, and three of the MLP's width."""
    return vision.spatial_merge_size**2 * (11 * vision.hidden_size + 3 * vision.intermediate_size)


def describe_model(plan: ModelPlan, processes: int = 1) -> list[str]:
    """Parameters and memory in words."""
    where = "memory" if processes == 1 else f"memory of each of {processes} processes"
    parts = [
        ("weights", plan.weight_bytes),
        ("frozen copy for the reference", plan.reference_bytes),
        ("gradients", plan.gradient_bytes),
        ("optimizer", plan.optimizer_bytes),
        ("exchange", plan.communication_bytes),
        ("activations of full rows", plan.activation_bytes),
    ]
    shown = ", ".join(f"{name} {size(count)}" for name, count in parts if count)
    lines = [
        f"parameters: {plan.parameters:,}, trained {plan.trained:,} ({plan.trained / plan.parameters:.2%})",
        f"{where}: {shown}; about {size(plan.total_bytes)} at the peak",
    ]
    if plan.cached_bytes:
        lines.append(
            f"  the main process has the whole model, {size(plan.cached_bytes)}, while it computes the reference"
        )
    return lines


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
