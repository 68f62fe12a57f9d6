"""Predicts the memory of one process in training, from shapes alone: no weights are read.

In bytes, where b is the size of an element of the compute dtype (2 for bfloat16), and N the number of processes that
shard a tensor (all processes, or those with the same experts; 1 if parallel.shard does not shard it):

- weights: b / N per parameter, or its quantized size; a reference model needs the same again;
- dequantized weights: b per weight of the largest matrix, or of a layer's stack of experts, which one product uses;
- gradients: b per trained parameter. With several processes, or several rows of a process in a step, they are summed
  in float32: 4 per parameter, 4 / N if they are sharded. With several rows, there is also b per parameter of the
  largest decoder layer and of parameters outside of the layers, for the gradients of the current row;
- optimizer: (8 + 4) / N per trained parameter, for the moments and the float32 master;
- communication between several processes: b + 4 per trained parameter of the largest decoder layer and, with
  parallel.shard parameters, the complete weights of two layers;
- activations: the rest of the peak of a step, see `erniekit.train.activations`. When activations are largest, the
  gradients of lower layers may not exist yet.

Not counted: experts that receive more than an even share of the tokens. Fragmentation of the allocator, the CUDA
context and NCCL's buffers are covered by `USABLE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from erniekit.config import Config
from erniekit.config.choices import SHARDS, Quantize, Shard
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import TensorSpec
from erniekit.parallel.data_parallel import REST
from erniekit.train.activations import ActivationPlan, Moment, RowShape, full_row
from erniekit.train.build_dpo import caches_reference_with_copy, keeps_reference_copy
from erniekit.train.recompute import BackwardPlan, backward_plan
from erniekit.train.selection import ParameterSelection, TensorGroup, group_tensors

USABLE = 0.92
"""The share of a device's memory that a plan may use."""

_MOMENT_BYTES = 8
_MASTER_BYTES = 4
_SUM_BYTES = 4


@dataclass(frozen=True)
class ShardingPlan:
    """How processes share a model.

    experts: expert-parallel degree; dense: number of processes with the same dense weights; replicas: number of
    processes with the same experts; shard: parallel.shard.
    """

    experts: int = 1
    dense: int = 1
    replicas: int = 1
    shard: Shard = "none"

    def is_sharded(self, group: TensorGroup, what: Shard) -> bool:
        """Whether the optimizer state, gradients or values (`what`) of tensors are sharded."""
        if group.is_router or SHARDS.index(self.shard) < SHARDS.index(what):
            return False
        if what == "parameters" and not group.is_fully_sharded:
            return False
        return self.num_holders(group) > 1

    def share(self, group: TensorGroup, what: Shard) -> float:
        """The share of the optimizer state, gradients or values (`what`) of tensors in one process."""
        share = 1 / self.experts if group.is_expert else 1.0
        return share / self.num_holders(group) if self.is_sharded(group, what) else share

    def num_holders(self, group: TensorGroup) -> int:
        """The number of processes that hold a tensor, or a shard of it."""
        return self.replicas if group.is_expert else self.dense


@dataclass(frozen=True)
class MemoryPlan:
    """The number of parameters of a model, and the memory of one process that trains it, in bytes.

    reference_bytes: the reference model of preference training; cached_bytes: the complete model with which the main
    process computes a cached reference before the first step; communication_bytes: buffers of collectives;
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
        """The peak of a step, or of computing a cached reference if that is more."""
        always = self.weight_bytes + self.activation_bytes + self.dequantized_bytes
        training = (
            self.reference_bytes + self.gradient_bytes + self.optimizer_bytes + self.communication_bytes
        )
        return always + max(training, self.cached_bytes)

    def fits(self, device_bytes: float) -> bool:
        """Whether it fits into `USABLE` of the memory of a device."""
        return self.total_bytes <= USABLE * device_bytes


@dataclass(frozen=True)
class _State:
    """The memory of a model without activations. layer_gradients: by decoder layer, and REST."""

    memory: MemoryPlan
    layer_gradients: Mapping[int, float]


def plan_model(
    specs: Sequence[TensorSpec],
    trained: Sequence[str],
    *,
    rows: int,
    sharding: ShardingPlan = ShardingPlan(),
    reference: bool = False,
    cached: bool = False,
    activations: int = 0,
    quantize: Quantize = "none",
) -> MemoryPlan:
    """Predict the memory for a model.

    specs: all parameters of the model; trained: names of the trained ones; rows: packed sequences of this process in a
    step; reference: a reference model without adapters is also in memory, sharded like the trained one; cached: one
    process has the complete reference model before the first step; activations: bytes at the peak; quantize: of the
    frozen weights, as in model.quantize.
    """
    groups = group_tensors(specs, trained, quantize)
    state = _plan_state(groups, rows, sharding, reference=reference, cached=cached)
    return replace(state.memory, activation_bytes=activations)


def _plan_state(
    groups: Sequence[TensorGroup], rows: int, sharding: ShardingPlan, *, reference: bool, cached: bool
) -> _State:
    """`plan_model` without activations."""
    weights = reference_weights = optimizer = 0.0
    gradients: dict[int, float] = {REST: 0.0}
    waiting: dict[int, float] = {REST: 0.0}
    exchanged: dict[int, float] = {REST: 0.0}
    for group in groups:
        exchanged[group.layer] = exchanged.get(group.layer, 0.0) + _communication_bytes(group, sharding)
        size = sharding.share(group, "parameters") * group.stored_bytes
        weights += size
        if reference and not group.is_adapter:
            reference_weights += size
        if not group.is_trained:
            continue
        share = sharding.share(group, "gradients")
        # Gradients of several rows or processes are summed in float32 (`AdamW.collect_gradients`).
        is_summed = rows > 1 or sharding.dense > 1
        found = share * (group.size * _SUM_BYTES if is_summed else group.num_bytes)
        gradients[group.layer] = gradients.get(group.layer, 0.0) + found
        if rows > 1 and not group.is_wide and not sharding.is_sharded(group, "gradients"):
            # The gradient of a row before it is added to the sum of the step.
            waiting[group.layer] = waiting.get(group.layer, 0.0) + share * group.num_bytes
        state = _MOMENT_BYTES + (0 if group.is_wide else _MASTER_BYTES)
        share = sharding.share(group, "optimizer")
        optimizer += share * group.size * state
        if sharding.is_sharded(group, "optimizer") and not sharding.is_sharded(group, "parameters"):
            # The optimizer has a copy of its shard of weights that are not sharded.
            optimizer += share * group.num_bytes
    del exchanged[REST]
    added = waiting.pop(REST) + max(waiting.values(), default=0.0)
    memory = MemoryPlan(
        parameters=sum(group.size for group in groups),
        trained=sum(group.size for group in groups if group.is_trained),
        weight_bytes=round(weights),
        reference_bytes=round(reference_weights),
        gradient_bytes=round(sum(gradients.values()) + added),
        optimizer_bytes=round(optimizer),
        communication_bytes=round(max(exchanged.values(), default=0.0)),
        cached_bytes=sum(group.stored_bytes for group in groups if not group.is_adapter) if cached else 0,
    )
    return _State(memory, gradients)


def dequantized_bytes(architecture: ErnieConfig, expert: int, dtype_bytes: int) -> int:
    """The largest weight that a product dequantizes, in bytes: the experts of a layer in this process, or a matrix of a
    dense layer. expert: the expert-parallel degree."""
    hidden, moe = architecture.hidden_size, architecture.moe
    rows = max(architecture.intermediate_size, architecture.num_attention_heads * architecture.head_dim)
    if moe is not None:
        # Gate and up are one matrix.
        rows = max(rows, moe.num_experts // expert * 2 * max(moe.intermediate_sizes))
    return rows * hidden * dtype_bytes


def _communication_bytes(group: TensorGroup, sharding: ShardingPlan) -> float:
    """Gradients in their own dtype and in float32, and the complete weights of two layers."""
    share, total = 1 / sharding.experts if group.is_expert else 1.0, 0.0
    if sharding.is_sharded(group, "parameters"):
        total += 2 * share * group.stored_bytes
    if group.is_trained and sharding.num_holders(group) > 1:
        total += share * (group.num_bytes + _SUM_BYTES * group.size)
    return total


@dataclass(frozen=True)
class TrainingPlan:
    """The layers to recompute, and the memory of each process. device_bytes: memory of its device."""

    backward: BackwardPlan
    memory: MemoryPlan
    device_bytes: int


def plan_training(
    config: Config,
    architecture: ErnieConfig,
    dtype: str,
    selected: ParameterSelection,
    dims: ParallelDims,
    device_bytes: int,
    row: RowShape | None = None,
    *,
    on_cpu: bool = False,
) -> TrainingPlan:
    """Plan the training of a model of this architecture. No file is read.

    row: the largest packed sequence; None: `full_row`. on_cpu: with the kernels of a CPU. train.recompute auto
    recomputes the fewest layers for which the plan fits into `USABLE` of `device_bytes`, or all layers.
    """
    backward = backward_plan(architecture, selected.trained)
    rows = max(1, config.num_rows(dims.data) // dims.data)
    state = _plan_state(
        selected.groups(config.model.quantize),
        rows,
        ShardingPlan(dims.expert, dims.world, dims.replicas, config.parallel.shard),
        reference=keeps_reference_copy(config),
        cached=caches_reference_with_copy(config),
    )
    memory, dtype_bytes = state.memory, 2 if dtype == "bfloat16" else 4
    if config.model.quantize != "none":
        dequantized = dequantized_bytes(architecture, config.parallel.expert, dtype_bytes)
        memory = replace(memory, dequantized_bytes=dequantized)
    row = full_row(config, architecture) if row is None else row
    activations = ActivationPlan(architecture, config, set(selected.trained), row, dtype_bytes, on_cpu)

    def with_recomputed(count: int) -> TrainingPlan:
        chosen = replace(backward, num_recomputed=count)
        peak = max(_beside_gradients(moment, state, rows) for moment in activations.moments(chosen))
        return TrainingPlan(chosen, replace(memory, activation_bytes=max(0, round(peak))), device_bytes)

    if config.train.recompute == "none":
        return with_recomputed(0)
    # Without recomputation, the backward pass would keep the gathered weights of each layer.
    if config.train.recompute == "layers" or config.parallel.shard == "parameters":
        return with_recomputed(backward.size)
    plans = map(with_recomputed, range(backward.size + 1))
    return next((plan for plan in plans if plan.memory.fits(device_bytes)), with_recomputed(backward.size))


def _beside_gradients(moment: Moment, state: _State, rows: int) -> float:
    """The activations of a moment in addition to all gradients: less the gradients that do not exist yet.

    From the second row of a step on, all gradients exist.
    """
    if rows > 1:
        return moment.activations
    missing = sum(
        found
        for layer, found in state.layer_gradients.items()
        if (layer < moment.first_layer if layer != REST else not moment.has_vision)
    )
    return moment.activations - missing
