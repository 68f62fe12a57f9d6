"""The model of a run: weights, adapters, and trained parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import paddle

from erniekit.checkpoint.model_files import open_model
from erniekit.checkpoint.names import hub_tensors
from erniekit.checkpoint.quantizer import Quantizer, make_quantizer, relative_error
from erniekit.checkpoint.resize import NO_CHANGES, ModelChanges
from erniekit.checkpoint.weights import load_fully_sharded, load_model
from erniekit.config import Config, LoraConfig
from erniekit.config.choices import Shard
from erniekit.config.rules import router_settings
from erniekit.data.media.patches import ImageSpec
from erniekit.distributed.collectives import all_reduce_host
from erniekit.distributed.mesh import Mesh
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.errors import ConfigError
from erniekit.lora.adapters import load_adapter
from erniekit.lora.targets import LoraMatch, add_adapters, linear_shapes, match_of, match_targets
from erniekit.models.config import ErnieConfig
from erniekit.models.config_keys import unknown_keys_message
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import parameter_specs
from erniekit.models.layer_runner import CheckpointedLayers
from erniekit.models.specs import TensorSpec, is_expert_tensor, is_vocab_tensor
from erniekit.moe.config import MoeConfig
from erniekit.parallel.context_parallel import apply_context_parallel
from erniekit.parallel.data_parallel import DataParallelReducer, GradientReducer
from erniekit.parallel.expert_parallel import apply_expert_parallel
from erniekit.parallel.fully_sharded import FullyShardedLayers
from erniekit.parallel.zero import ZeroReducer
from erniekit.train.build_dpo import caches_reference_with_copy, keeps_reference_copy
from erniekit.train.describe import (
    describe_backward,
    describe_lora,
    describe_model,
    describe_parallel_dims,
    describe_quantized,
    describe_vocab,
)
from erniekit.train.device_memory import device_memory
from erniekit.train.memory import (
    MemoryPlan,
    ShardingPlan,
    activation_bytes,
    dequantized_bytes,
    plan_model,
)
from erniekit.train.parameters import check_experts, check_routers, trained_names
from erniekit.train.recompute import BackwardPlan, backward_plan

_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class PreparedModel:
    """A model ready to be trained, and its trained parameters in the model's order.

    trained: those that this process holds, perhaps no expert; all_trained: the names of those of the whole model.
    backward: how its layers are run. fully_sharded: the layers that processes share (parallel.shard parameters);
    changes: to the base's `config.json`.
    """

    model: ErnieModel
    trained: list[tuple[str, paddle.Tensor]]
    all_trained: list[str]
    backward: BackwardPlan
    fully_sharded: FullyShardedLayers | None = None
    changes: ModelChanges = NO_CHANGES


@dataclass(frozen=True)
class ParameterSelection:
    """The modules with adapters, and all parameters and trained parameters of the whole model over all processes.

    rows_before, rows: rows of the embedding in the checkpoint and in memory.
    """

    matches: list[LoraMatch]
    specs: list[TensorSpec]
    trained: list[str]
    rows_before: int
    rows: int


def lora_alpha(lora: LoraConfig) -> float:
    """lora.alpha, or its default of twice the rank."""
    return 2.0 * lora.rank if lora.alpha is None else lora.alpha


def lora_expert_rank(lora: LoraConfig, moe: MoeConfig | None) -> int:
    """The rank of adapters on experts: lora.expert_rank, "auto" for lora.rank over the experts of a token, at least 1.

    Unset, experts have lora.rank. Schulman et al. 2025, "LoRA Without Regret".
    """
    if moe is None or lora.expert_rank is None:
        return lora.rank
    return max(1, lora.rank // moe.top_k) if lora.expert_rank == "auto" else lora.expert_rank


def prepare_model(
    config: Config,
    dtype: str,
    image_spec: ImageSpec | None,
    checkpoint: Path | None,
    log: Callable[[str], None],
    mesh: Mesh | None = None,
    changes: ModelChanges = NO_CHANGES,
) -> PreparedModel:
    """Load the model, add adapters, freeze what is not trained, and log a description.

    checkpoint: the training checkpoint to load weights or adapters from. mesh: the processes that share the model and
    its rows. changes: to the base's `config.json`. Raises CheckpointError where files do not fit, ConfigError where
    lora.targets or model.freeze match nothing.
    """
    lora = config.lora
    weights = config.model.directory if lora.enabled or checkpoint is None else checkpoint
    before = ErnieConfig.from_dir(config.model.directory)
    selected = select_parameters(config, before, dtype, changes)
    dims = mesh.dims if mesh is not None else ParallelDims()
    # Before anything is loaded, so that all memory of a CPU is still free.
    plan = plan_training(config, changes.apply(before), dtype, selected, dims, _shared_memory(mesh))
    log(f"model: loading {weights} in {dtype}")
    quantizer = make_quantizer(config.model.quantize)
    model, fully_sharded = load_sharded(weights, dtype, mesh, config.parallel.shard, changes, quantizer)
    if quantizer is not None:
        sums = _summed(quantizer, mesh, of_all=fully_sharded is not None)
        log(describe_quantized(config.model.quantize, selected.specs, relative_error(sums)))
    if dims.world == 1:
        plan.backward.apply(model)
    if image_spec is not None:
        model.image_mean, model.image_std = image_spec.image_mean, image_spec.image_std
    if lora.enabled:
        add_adapters(
            model,
            [match.module for match in selected.matches],
            rank=lora.rank,
            alpha=lora_alpha(lora),
            dropout=lora.dropout,
            seed=config.train.seed,
            expert_rank=lora_expert_rank(lora, model.config.moe),
        )
    trained = _mark_trained(model, set(selected.trained))
    if lora.enabled and checkpoint is not None:
        load_adapter(model, checkpoint)
    _describe(config, selected, plan, dims, log)
    return PreparedModel(model, trained, selected.trained, plan.backward, fully_sharded, changes)


def _mark_trained(model: ErnieModel, wanted: set[str]) -> list[tuple[str, paddle.Tensor]]:
    """Freeze all parameters but those that hold the `wanted` tensors of the Hub, which are returned by name."""
    # `check_experts`: all tensors of a parameter are wanted, or none.
    holders = {tensor.parameter for tensor in hub_tensors(model) if tensor.name in wanted}
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = name not in holders
    return [(name, parameter) for name, parameter in model.named_parameters() if name in holders]


def check_model(directory: Path, log: Callable[[str], None], *, weights: bool = True) -> None:
    """Check the headers of the base model's files, and warn of unknown keys in `config.json`.

    Runs before data is encoded, which may take long. weights: False to read `config.json` only. Raises
    CheckpointError.
    """
    config = open_model(directory)[0] if weights else ErnieConfig.from_dir(directory)
    unknown = unknown_keys_message(config.unknown, directory / "config.json")
    if unknown is not None:
        log(f"warning: {unknown}")


def load_sharded(
    directory: Path,
    dtype: str,
    mesh: Mesh | None,
    shard: Shard,
    changes: ModelChanges = NO_CHANGES,
    quantizer: Quantizer | None = None,
) -> tuple[ErnieModel, FullyShardedLayers | None]:
    """Load this process's part of a model: its experts, and its shards of layers with parallel.shard parameters."""
    if mesh is None or mesh.world.size == 1:
        return load_model(directory, dtype, changes=changes, quantizer=quantizer), None
    fully_sharded = None
    # Some processes may read much faster than others, from their own disk or from one that all share.
    with mesh.long_operation("loading the model"):
        if shard == "parameters":
            model, fully_sharded = load_fully_sharded(directory, dtype, mesh, changes, quantizer)
            model.model.run = CheckpointedLayers(fully_sharded)
        else:
            experts = mesh.expert
            model = load_model(
                directory,
                dtype,
                expert_rank=experts.rank,
                expert_ranks=experts.size,
                changes=changes,
                quantizer=quantizer,
            )
    apply_expert_parallel(model, mesh.expert)
    apply_context_parallel(model, mesh.context)
    return model, fully_sharded


def _summed(quantizer: Quantizer, mesh: Mesh | None, *, of_all: bool) -> np.ndarray:
    """The quantizer's sums over the whole model. of_all: all processes share it, not an expert-parallel group."""
    if mesh is None:
        return quantizer.sums
    return all_reduce_host(quantizer.sums, mesh.world if of_all else mesh.expert)


def build_gradient_reducer(config: Config, prepared: PreparedModel, mesh: Mesh) -> GradientReducer | None:
    """Reduce gradients of several processes during the model's backward pass. None for one process."""
    if mesh.world.size == 1:
        return None
    shard = config.parallel.shard
    reducer: GradientReducer = (
        DataParallelReducer(mesh, prepared.trained)
        if shard == "none"
        else ZeroReducer(mesh, prepared.trained, shard, prepared.fully_sharded)
    )
    if prepared.fully_sharded is not None:
        prepared.fully_sharded.lowest = prepared.backward.layers.start
    prepared.backward.apply(prepared.model, reducer.hooks)
    return reducer


def describe_model_plan(
    config: Config,
    dtype: str,
    log: Callable[[str], None],
    dims: ParallelDims,
    changes: ModelChanges = NO_CHANGES,
) -> None:
    """Log the description that `prepare_model` logs, from `config.json` alone, without memory for parameters.

    Raises as `prepare_model` does.
    """
    before = ErnieConfig.from_dir(config.model.directory)
    selected = select_parameters(config, before, dtype, changes)
    memory = device_memory(dims.world)
    plan = plan_training(config, changes.apply(before), dtype, selected, dims, memory)
    _describe(config, selected, plan, dims, log)


def select_parameters(
    config: Config, before: ErnieConfig, dtype: str, changes: ModelChanges = NO_CHANGES
) -> ParameterSelection:
    """Match the configuration against the parameters of the whole model: one process may hold none that match.

    Raises ConfigError where lora.targets or model.freeze match nothing, and where model.freeze covers new rows.
    """
    architecture = changes.apply(before)
    is_resized = architecture.vocab_size > before.vocab_size
    specs = parameter_specs(architecture, _DTYPE_NAMES[dtype])
    matches: list[LoraMatch] = []
    if config.lora.enabled:
        linears = linear_shapes(specs)
        expert_rank = lora_expert_rank(config.lora, architecture.moe)
        for module in match_targets(list(linears), config.lora.targets):
            outer, inner = linears[module]
            rank = expert_rank if is_expert_tensor(f"{module}.") else config.lora.rank
            matches.append(match_of(module, inner, outer, rank))
            specs.append(TensorSpec(f"{module}.lora_A.weight", _DTYPE_NAMES[dtype], (rank, inner)))
            specs.append(TensorSpec(f"{module}.lora_B.weight", _DTYPE_NAMES[dtype], (outer, rank)))
    names = [spec.name for spec in specs]
    trained = trained_names(
        names,
        freeze=config.model.freeze,
        adapters=config.lora.enabled,
        train_router=config.lora.train_router,
        # Adapters have no place for new rows: the tensors with new rows are trained and saved whole.
        train_vocab=is_resized,
    )
    if is_resized:
        untrained = [name for name in names if is_vocab_tensor(name) and name not in trained]
        if untrained:
            raise ConfigError(
                f"model.freeze covers {untrained[0]}: its new rows (model.resize_vocab) would stay untrained"
            )
    check_routers(names, trained, router_settings(config))
    if architecture.moe is not None:
        check_experts(names, trained, architecture.moe.num_experts)
    return ParameterSelection(matches, specs, trained, before.vocab_size, architecture.vocab_size)


@dataclass(frozen=True)
class TrainingPlan:
    """How the layers of a model are run, and the memory of each process. device_bytes: the memory of its device."""

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
) -> TrainingPlan:
    """The plan of a run that trains a model of this architecture. No file is read.

    train.recompute auto recomputes the fewest layers with which the plan fits into `USABLE` of `device_bytes`, or all.
    """
    backward = backward_plan(architecture, selected.trained)
    sharding = ShardingPlan(dims.expert, dims.world, dims.replicas, config.parallel.shard)
    memory = plan_model(
        selected.specs,
        selected.trained,
        rows_per_step=config.train.rows_per_step,
        sharding=sharding,
        reference=keeps_reference_copy(config),
        cached=caches_reference_with_copy(config),
        quantize=config.model.quantize,
    )
    # The backward pass would keep the gathered weights of layers that are not recomputed.
    keeps_weights = config.parallel.shard == "parameters"
    dtype_bytes = 2 if dtype == "bfloat16" else 4
    if config.model.quantize != "none":
        dequantized = dequantized_bytes(architecture, config.parallel.expert, dtype_bytes)
        memory = replace(memory, dequantized_bytes=dequantized)
    counts = {
        "none": range(1),
        "layers": range(backward.size, backward.size + 1),
        "auto": range(backward.size if keeps_weights else 0, backward.size + 1),
    }[config.train.recompute]
    for count in counts:
        backward = replace(backward, num_recomputed=count)
        activations = activation_bytes(architecture, config, dtype_bytes, selected.trained, backward)
        memory = replace(memory, activation_bytes=activations)
        if memory.fits(device_bytes):
            break
    return TrainingPlan(backward, memory, device_bytes)


def _shared_memory(mesh: Mesh | None) -> int:
    """The smallest device memory of all processes, in bytes: they must recompute the same layers."""
    if mesh is None:
        return device_memory()
    own = np.array([-device_memory(mesh.local_size)], np.int64)
    return -int(all_reduce_host(own, mesh.world, "max")[0])


def _describe(
    config: Config,
    selected: ParameterSelection,
    plan: TrainingPlan,
    dims: ParallelDims,
    log: Callable[[str], None],
) -> None:
    lines = describe_lora(selected.matches) if config.lora.enabled else []
    if config.model.resize_vocab:
        lines.insert(0, describe_vocab(selected.rows_before, selected.rows, adapters=config.lora.enabled))
    lines += describe_model(plan.memory, dims.world)
    lines += describe_backward(plan.backward, config.train.recompute, plan.memory, plan.device_bytes)
    for line in [*describe_parallel_dims(dims), *lines]:
        log(line)
