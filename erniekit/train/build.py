"""Builds a trainer and its parts from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from erniekit.checkpoint.base import BaseChecksums, write_base_checksums
from erniekit.checkpoint.manifest import FileRecord
from erniekit.checkpoint.names import by_parameter, hub_tensors
from erniekit.checkpoint.quantizer import make_quantizer
from erniekit.checkpoint.resize import ModelChanges
from erniekit.checkpoint.state import TrainerState, check_identity, read_state, set_aside_newer
from erniekit.config import Config
from erniekit.data.load.batch import PackedBatch
from erniekit.data.store.dataset import Dataset
from erniekit.distributed.skipped_samples import SkippedSampleSync
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.routing import RouterWeights
from erniekit.objectives.sft import SftObjective
from erniekit.optim.adamw import AdamW, GroupRule
from erniekit.parallel.data_parallel import GradientReducer, collect_by_layer
from erniekit.train.best import best_data, check_best
from erniekit.train.build_dpo import build_dpo_objective, build_reference, needs_base
from erniekit.train.build_hooks import build_hooks
from erniekit.train.checkpointer import Checkpointer
from erniekit.train.describe import describe_rounding, describe_run
from erniekit.train.distributed import fix_rows
from erniekit.train.flops import device_peak_flops, make_flop_counter
from erniekit.train.identity import changed_settings, run_identity, saved_identity, with_defaults
from erniekit.train.inputs import Inputs, load_inputs
from erniekit.train.model import (
    PreparedModel,
    build_gradient_reducer,
    load_sharded,
    prepare_model,
)
from erniekit.train.nonfinite import NONFINITE_DIR, NonFinitePolicy
from erniekit.train.plan import RunPlan, plan_run
from erniekit.train.progress import TrainerProgress
from erniekit.train.run_context import RunContext
from erniekit.train.run_directory import (
    begin_run,
    check_space,
    checkpoint_to_resume,
    make_run_directory,
    write_config,
    writing_to,
)
from erniekit.train.run_lock import lock_run_directory
from erniekit.train.selection import select_parameters
from erniekit.train.trainer import Trainer, TrainerSettings


@dataclass(frozen=True)
class _SavedRun:
    """The checkpoint that a run resumes from."""

    path: Path
    state: TrainerState


def build_trainer(context: RunContext, *, resume: bool, stack: ExitStack) -> tuple[Trainer, Checkpointer]:
    """Load data and model, lock the run's directory, and build a trainer that is ready to train.

    All processes of the run call it together. stack: closes what is opened here. resume: continue from the newest
    complete checkpoint, or start where there is none. Raises ErnieKitError for an invalid configuration,
    data or files.
    """
    # Released after everything else is closed.
    lock = stack.enter_context(ExitStack())
    # Before anything is read: another run in the directory would write newer checkpoints meanwhile.
    is_locked = resume and context.run_dir.is_dir()
    if is_locked:
        _lock(context, lock)
    saved = _find_saved_run(context) if resume else None
    context, inputs, plan = _load_data(context, saved, stack)
    config, dist, log = context.config, context.dist, context.log
    dtype, peers = context.dtype, context.peers
    limits = inputs.encoder.limits
    changes = ModelChanges(limits.vocab_size, limits.max_positions)
    identity = run_identity(config, dtype, str(inputs.rows.settings["fingerprint"]), changes)
    if saved is not None:
        # Before the model is loaded, which may take long.
        _check_saved_run(saved, identity, inputs, context)
    base = BaseChecksums(config.model.directory, dist) if needs_base(config) else None
    prepared = prepare_model(
        config,
        dtype,
        inputs.encoder.image_spec,
        saved.path if saved is not None else None,
        log,
        dist.mesh,
        changes,
        inputs.largest_row(config.data.max_length),
        force=context.force,
    )
    objective = build_objective(context, prepared, inputs.datasets)
    records = None if base is None else base.check(context.run_dir if saved is not None else None)
    reducer = build_gradient_reducer(config, prepared, dist.mesh)
    optimizer = build_optimizer(config, prepared, reducer)
    checkpointer = Checkpointer(
        config, prepared, optimizer, inputs.train, plan.schedule, identity, context.console, dist, reducer
    )
    progress = TrainerProgress() if saved is None else _resume(saved, checkpointer, inputs, context)
    with writing_to(context.run_dir):
        _take_run_directory(context, lock, saved, records, is_locked=is_locked)
    if progress.step < plan.total_steps:
        check_space(config, checkpointer.checkpoint_bytes(), is_new=saved is None, dist=dist, log=log)
    peak_flops = find_peak_flops(context)
    hooks = build_hooks(
        context, inputs, plan, prepared.model, objective, checkpointer, peak_flops, progress.step, stack
    )
    trainer = Trainer(
        model=prepared.model,
        objective=objective,
        optimizer=optimizer,
        schedule=plan.schedule,
        rows=inputs.train,
        settings=TrainerSettings(
            total_steps=plan.total_steps,
            rows_per_step=config.num_rows(),
            max_length=config.data.max_length,
            max_grad_norm=config.optimizer.max_grad_norm,
            seed=config.train.seed,
        ),
        hooks=hooks,
        dist=peers,
        reducer=reducer,
        skipped_samples=None if peers is None else SkippedSampleSync(inputs.train.budget, peers),
        nonfinite=NonFinitePolicy(config.train.on_nonfinite, context.run_dir / NONFINITE_DIR, log, peers),
        count_flops=None if peak_flops is None else build_flop_counter(config, dtype, changes),
        progress=progress,
    )
    return trainer, checkpointer


def find_peak_flops(context: RunContext) -> float | None:
    """FLOP/s of all devices of the run, None where the peak of a device is not known; says which on a GPU."""
    dtype = context.dtype
    peak, name = device_peak_flops(dtype, context.config.train.peak_tflops, context.device)
    if peak is not None:
        context.log(f"peak of {name}: {peak / 1e12:,g} TFLOP/s in {dtype}, for train/mfu")
        return peak * context.dist.mesh.world.size
    if context.device == "gpu":
        context.log(f"note: the peak of {name} in {dtype} is not known: train/mfu needs train.peak_tflops")
    return None


def build_flop_counter(config: Config, dtype: str, changes: ModelChanges) -> Callable[[PackedBatch], float]:
    """Counts the FLOPs of rows, for the model of the run."""
    before = ErnieConfig.from_dir(config.model.directory)
    selected = select_parameters(config, before, dtype, changes)
    return make_flop_counter(changes.apply(before), selected.specs, selected.trained)


def build_optimizer(config: Config, prepared: PreparedModel, reducer: GradientReducer | None = None) -> AdamW:
    """AdamW over the trained parameters, or this process's shards of them, with the groups of the configuration.

    One process with several rows a step also sums the gradients of each layer during the backward pass.
    """
    settings, tensors = config.optimizer, by_parameter(hub_tensors(prepared.model))
    optimizer = AdamW(
        prepared.trained if reducer is None else reducer.parameters,
        weight_decay=settings.weight_decay,
        beta1=settings.beta1,
        beta2=settings.beta2,
        epsilon=settings.epsilon,
        rules=[GroupRule(g.match, g.learning_rate_ratio, g.weight_decay) for g in settings.groups],
        router_ratio=settings.router_learning_rate_ratio,
        shapes=None if reducer is None else reducer.shapes,
        all_names=prepared.all_trained,
        hub_names={name: [part.name for part in parts] for name, parts in tensors.items()},
    )
    if reducer is None and config.num_rows() > 1:
        hooks = collect_by_layer(optimizer, [name for name, _ in prepared.trained])
        prepared.backward.apply(prepared.model, hooks)
    return optimizer


def build_objective(
    context: RunContext, prepared: PreparedModel, datasets: Sequence[Dataset]
) -> SftObjective | DpoObjective:
    """The loss of the run's task, with the reference model of preference training, which may be cached for all pairs
    of `datasets`."""
    config, dist, model, dtype = context.config, context.dist, prepared.model, context.dtype
    if config.task == "dpo":

        def load_base() -> ErnieModel:
            # One process computes what is cached.
            mesh = None if config.dpo.reference == "cached" else dist.mesh
            directory, shard = config.model.directory, config.parallel.shard
            quantizer = make_quantizer(config.model.quantize)
            return load_sharded(directory, dtype, mesh, shard, prepared.changes, quantizer)[0]

        reference = build_reference(config, model, dtype, datasets, load_base, context.log, dist)
        return build_dpo_objective(config, model, reference)
    loss = config.loss
    return SftObjective(
        model,
        loss.chunk_tokens,
        normalization=loss.normalization,
        router_weights=RouterWeights(balance=loss.balance_weight, z=loss.z_weight),
    )


def _find_saved_run(context: RunContext) -> _SavedRun | None:
    shared = context.config.checkpoint.shared
    checkpoint = checkpoint_to_resume(context.run_dir, context.dist, context.log, shared=shared)
    return None if checkpoint is None else _SavedRun(checkpoint, read_state(checkpoint))


def _load_data(
    context: RunContext, saved: _SavedRun | None, stack: ExitStack
) -> tuple[RunContext, Inputs, RunPlan]:
    """Read all data and plan the run, and log both. Also returns the context with the number of rows of a step."""
    rows = None if saved is None else saved.state.identity.get("train.rows_per_step")
    config = fix_rows(context.config, context.dist.mesh.dims, rows)
    inputs = load_inputs(
        config, context.log, context.dist, is_resumed=saved is not None, warn=context.console.warn
    )
    stack.callback(inputs.close)
    plan = plan_run(config, inputs.rows)
    lines = describe_run(plan, config, inputs.encoder.template.name)
    for line in [*lines, *describe_rounding(context.config, config.num_rows())]:
        context.log(line)
    return replace(context, config=config), inputs, plan


def _check_saved_run(saved: _SavedRun, identity: dict[str, Any], inputs: Inputs, context: RunContext) -> None:
    """Raise CheckpointError or DataError where the run cannot be resumed; log the settings that differ."""
    contents = {"data.train": inputs.train.describe_change(saved.state.loader)}
    check_identity(saved_identity(saved.state, identity), identity, saved.path, contents)
    inputs.train.check_state(saved.state.loader)
    context.log(f"resuming from {saved.path}, after step {saved.state.step}")
    changes = changed_settings(with_defaults(saved.state.config), context.config.model_dump())
    if changes:
        context.log("settings that differ from those of the checkpoint:")
        for line in changes:
            context.log(f"  {line}")


def _resume(
    saved: _SavedRun, checkpointer: Checkpointer, inputs: Inputs, context: RunContext
) -> TrainerProgress:
    """Load optimizer and loader; the weights are loaded with the model."""
    with context.dist.mesh.long_operation("loading the checkpoint"):
        progress = checkpointer.load(saved.path, saved.state)
    best_metric = context.config.eval.best_metric
    data = best_data(context.config, inputs)
    check_best(context.run_dir, progress, best_metric, data, context.dist, context.log)
    return progress


def _lock(context: RunContext, lock: ExitStack) -> None:
    if context.dist.is_main:
        with writing_to(context.run_dir):
            lock.enter_context(lock_run_directory(context.run_dir, context.log))


def _take_run_directory(
    context: RunContext,
    lock: ExitStack,
    saved: _SavedRun | None,
    records: Mapping[str, FileRecord] | None,
    *,
    is_locked: bool,
) -> None:
    """Create and lock the run's directory, and write the configuration and the checksums of the base model."""
    make_run_directory(context.run_dir)
    if not is_locked:
        _lock(context, lock)
    if not context.dist.is_main:
        return
    if saved is None:
        begin_run(context.config, context.log)
    else:
        for path in set_aside_newer(context.run_dir, saved.state.step):
            context.log(f"{path}: renamed, since the run continues from step {saved.state.step}")
        write_config(context.config)
    if records is not None:
        write_base_checksums(context.run_dir, records)
