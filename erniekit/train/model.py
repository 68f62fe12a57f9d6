"""Prepares the model of a run: weights, adapters, and trained parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from erniekit.checkpoint.model_files import open_model
from erniekit.checkpoint.names import hub_tensors
from erniekit.checkpoint.quantizer import Quantizer, make_quantizer, relative_error
from erniekit.checkpoint.resize import NO_CHANGES, ModelChanges
from erniekit.checkpoint.weights import load_fully_sharded, load_model
from erniekit.config import Config
from erniekit.config.choices import Shard
from erniekit.data.media.patches import ImageSpec
from erniekit.distributed.collectives import all_reduce_host
from erniekit.distributed.mesh import Mesh
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.lora.adapters import load_adapter
from erniekit.lora.targets import add_adapters
from erniekit.models.config import ErnieConfig
from erniekit.models.config_keys import unknown_keys_message
from erniekit.models.ernie import ErnieModel
from erniekit.models.layer_runner import CheckpointedLayers
from erniekit.parallel.context_parallel import apply_context_parallel
from erniekit.parallel.data_parallel import DataParallelReducer, GradientReducer
from erniekit.parallel.expert_parallel import apply_expert_parallel
from erniekit.parallel.fully_sharded import FullyShardedLayers
from erniekit.parallel.zero import ZeroReducer
from erniekit.train.activations import RowShape
from erniekit.train.describe import (
    describe_backward,
    describe_lora,
    describe_model,
    describe_parallel_dims,
    describe_quantized,
    describe_vocab,
)
from erniekit.train.device_memory import device_gpu, device_memory, is_cpu
from erniekit.train.memory import TrainingPlan, plan_training
from erniekit.train.planner.job import Job
from erniekit.train.planner.refuse import refuse_what_cannot_fit
from erniekit.train.recompute import BackwardPlan
from erniekit.train.selection import ParameterSelection, lora_alpha, lora_expert_rank, select_parameters
from erniekit.train.start_adapter import find_start_adapter


@dataclass(frozen=True)
class PreparedModel:
    """A model that is ready for training.

    trained: trained parameters of this process by name, in the model's order; all_trained: names of the trained tensors
    of the whole model; backward: the layers to recompute; fully_sharded: sharded layers (parallel.shard parameters);
    changes: to `config.json` of the base model.
    """

    model: ErnieModel
    trained: list[tuple[str, paddle.Tensor]]
    all_trained: list[str]
    backward: BackwardPlan
    fully_sharded: FullyShardedLayers | None = None
    changes: ModelChanges = NO_CHANGES


def prepare_model(
    config: Config,
    dtype: str,
    image_spec: ImageSpec | None,
    checkpoint: Path | None,
    log: Callable[[str], None],
    mesh: Mesh | None = None,
    changes: ModelChanges = NO_CHANGES,
    row: RowShape | None = None,
    *,
    force: bool = False,
) -> PreparedModel:
    """Load the model, add adapters, freeze parameters that are not trained, and log a description.

    checkpoint: the training checkpoint to load weights or adapters from; mesh: the processes that share the model and
    its rows; changes: to `config.json` of the base model; row: the largest packed sequence of the data; force: load the
    model even if it cannot fit into memory. Raises CheckpointError for invalid files, and ConfigError if lora.targets
    or model.freeze match nothing, or the model cannot fit.
    """
    lora = config.lora
    weights = config.model.directory if lora.enabled or checkpoint is None else checkpoint
    before = ErnieConfig.from_dir(config.model.directory)
    selected = select_parameters(config, before, dtype, changes)
    start = find_start_adapter(config, selected.matches, lora_alpha(lora)) if checkpoint is None else None
    dims = mesh.dims if mesh is not None else ParallelDims()
    # Measured before anything is loaded, when all memory of a CPU is still free.
    memory = _shared_memory(mesh)
    plan = plan_training(config, changes.apply(before), dtype, selected, dims, memory, row, on_cpu=is_cpu())
    if not force:
        job = Job(config, before, dims.world, memory, dtype, changes, row, on_cpu=is_cpu())
        refuse_what_cannot_fit(job, device_gpu())
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
    elif start is not None:
        log(f"adapters: starting from {start}")
        load_adapter(model, start, partial=True)
    _describe(config, selected, plan, dims, log)
    return PreparedModel(model, trained, selected.trained, plan.backward, fully_sharded, changes)


def _mark_trained(model: ErnieModel, wanted: set[str]) -> list[tuple[str, paddle.Tensor]]:
    """Freeze all parameters except those with the `wanted` tensors of the Hub. Returns the trained ones by name."""
    # A parameter with several tensors (experts) is trained completely or not at all: see `check_experts`.
    holders = {tensor.parameter for tensor in hub_tensors(model) if tensor.name in wanted}
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = name not in holders
    return [(name, parameter) for name, parameter in model.named_parameters() if name in holders]


def check_start(config: Config) -> None:
    """Check the adapter of lora.path, if there is one. Raises as `find_start_adapter` does."""
    if config.lora.path is not None:
        selected = select_parameters(config, ErnieConfig.from_dir(config.model.directory), "float32")
        find_start_adapter(config, selected.matches, lora_alpha(config.lora))


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
    # Some processes may read much faster than others.
    with mesh.long_operation("loading the model"):
        if shard == "parameters":
            model, fully_sharded = load_fully_sharded(directory, dtype, mesh, changes, quantizer)
            model.model.layer_runner = CheckpointedLayers(fully_sharded)
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
    """The quantizer's sums over the whole model. of_all: over all processes instead of an expert-parallel group."""
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
    row: RowShape | None = None,
) -> None:
    """Log the description that `prepare_model` logs, from `config.json` alone, without memory for parameters.

    row: the largest packed sequence; None: one of data.max_length tokens. Raises as `prepare_model` does.
    """
    before = ErnieConfig.from_dir(config.model.directory)
    selected = select_parameters(config, before, dtype, changes)
    memory = device_memory(dims.world)
    plan = plan_training(config, changes.apply(before), dtype, selected, dims, memory, row, on_cpu=is_cpu())
    _describe(config, selected, plan, dims, log)


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
