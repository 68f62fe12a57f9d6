"""One training run, from its configuration to its last checkpoint."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from erniekit.checkpoint.best import BEST_NAME
from erniekit.checkpoint.resize import NO_CHANGES, ModelChanges
from erniekit.checkpoint.state import (
    TrainerState,
    check_identity,
    checkpoint_name,
    newest_checkpoint,
    read_state,
)
from erniekit.config import Config
from erniekit.data.load.rows import StoredRows
from erniekit.distributed.context import DistributedContext
from erniekit.distributed.worker import worker_from
from erniekit.interrupt import SAME_REQUEST_SECONDS, InterruptGuard
from erniekit.models.ernie import ErnieModel
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.routing import RouterWeights
from erniekit.objectives.sft import SftObjective
from erniekit.optim.adamw import AdamW, GroupRule
from erniekit.parallel.data_parallel import GradientReducer
from erniekit.runtime import compute_dtype, configure
from erniekit.train.answers import EvalAnswers
from erniekit.train.best import make_early_stopping
from erniekit.train.directory import (
    CONFIG_FILE,
    begin_run,
    check_directory,
    checkpoint_to_resume,
    hold_directory,
    make_directory,
    write_config,
)
from erniekit.train.dpo import make_dpo_objective, make_reference
from erniekit.train.evaluating import Evaluator
from erniekit.train.inputs import Inputs, load_inputs
from erniekit.train.loop import Loop, LoopSettings, Progress
from erniekit.train.monitor import Monitor
from erniekit.train.plan import RunPlan, describe_run, plan_run
from erniekit.train.prepare import Prepared, check_model, load_shared, make_gradient_reducer, prepare_model
from erniekit.train.processes import init_distributed
from erniekit.train.progress import Console, make_console
from erniekit.train.routers import Routers
from erniekit.train.saving import (
    Saver,
    changed_settings,
    restore,
    run_identity,
    saved_identity,
    settle_best,
    with_defaults,
)
from erniekit.train.skips import SkippedSampleSync


class StoppedAtOnce(Exception):
    """A second signal has ended the run wherever it stood; `status` is the process's exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def run_training(config: Config, *, resume: bool = False) -> int:
    """Train as `config` says; returns the process's exit status.

    That is 0, or after an interrupt 130 (Ctrl-C) or 143 (SIGTERM), when the run was saved and can be resumed.
    `resume` continues from the newest complete checkpoint in train.output_dir, and begins where none was ever saved.
    Raises ErnieKitError for whatever is
    wrong with config, data or files.
    """
    console = make_console()
    worker = worker_from(os.environ)
    check_model(Path(config.model.path), console.log)
    if worker is None or worker.rank == 0:
        check_directory(config, resume=resume)
    threads = config.parallel.threads or (worker.threads if worker is not None else None)
    device = configure(config.parallel.device, threads, config.train.seed)
    dist = init_distributed(config, worker)
    try:
        status = train_with(config, resume, console, device, dist)
    except StoppedAtOnce as stopped:
        return stopped.status
    # Not after a stop at once or an error: the others stand elsewhere, and learn of this one's end from the launcher.
    dist.close()
    return status


def train_with(config: Config, resume: bool, console: Console, device: str, dist: DistributedContext) -> int:
    """Train together with the other processes of the team, which call the same. See `run_training`.

    Raises StoppedAtOnce after a second signal.
    """
    run = Path(config.train.output_dir)
    checkpoint = checkpoint_to_resume(run, console.log) if resume else None
    state = read_state(checkpoint) if checkpoint is not None else None
    dtype = compute_dtype(config.model.dtype, device)
    inputs = load_inputs(config, console.log, dist)
    held = ExitStack()
    try:
        plan = plan_run(config, inputs.rows)
        for line in describe_run(plan, config, inputs.encoder.template.name):
            console.log(line)
        limits = inputs.encoder.limits
        changes = ModelChanges(limits.vocab_size, limits.max_positions)
        identity = run_identity(config, dtype, str(inputs.rows.settings["fingerprint"]), changes)
        if checkpoint is not None and state is not None:
            check_identity(saved_identity(state, identity), identity, checkpoint)
            # Before the model is loaded, which may take long.
            inputs.train.check_state(state.loader)
            _say_changes(checkpoint, state, config, console.log)
        prepared = prepare_model(
            config, dtype, inputs.encoder.image_spec, checkpoint, console.log, dist.mesh, changes
        )
        objective = make_objective(config, prepared, inputs, dtype, dist, console.log, changes)
        reducer = make_gradient_reducer(config, prepared, dist.mesh)
        optimizer = make_optimizer(config, prepared, reducer)
        progress = Progress()
        if checkpoint is not None and state is not None:
            with dist.mesh.busy("loading the checkpoint"):
                progress = restore(checkpoint, state, optimizer, inputs.train, dist, reducer)
            settle_best(run, progress, config.eval.best_metric, dist, console.log)
        make_directory(run)
        if dist.is_main:
            held.enter_context(hold_directory(run, console.log))
            if checkpoint is None:
                begin_run(config, console.log)
            else:
                write_config(config)
        saver = Saver(
            run=run,
            config=config,
            model=prepared.model,
            optimizer=optimizer,
            loader=inputs.train,
            schedule=plan.schedule,
            identity=identity,
            log=console.log,
            dist=dist,
            fully_sharded=prepared.fully_sharded,
            reducer=reducer,
            changes=changes,
        )
        monitor = _monitor(run, config, progress, dist)
        try:
            loop = make_loop(
                config,
                plan,
                prepared,
                objective,
                optimizer,
                inputs,
                monitor,
                console,
                saver,
                progress,
                dist,
                reducer,
            )
            return _run(loop, run, console.log, _devices(device, dist))
        finally:
            monitor.close()
    finally:
        inputs.close()
        held.close()


def _run(loop: Loop, run: Path, log: Callable[[str], None], devices: str) -> int:
    again = f"  erniekit train {shlex.quote(str(run / CONFIG_FILE))} --resume{devices}"
    hint = "finishing this step, then saving. Press Ctrl-C again a few seconds later to stop at once."
    with InterruptGuard(lambda name: log(f"{name}: {hint}"), same_seconds=SAME_REQUEST_SECONDS) as guard:
        try:
            loop.run(guard)
        except KeyboardInterrupt:
            newest = newest_checkpoint(run)
            if newest is None:
                log("Stopped at once. Nothing was saved yet.")
            else:
                log(f"Stopped at once; what came after {newest.name} is lost. Continue with:\n{again}")
            raise StoppedAtOnce(guard.exit_status) from None
    done, total = loop.progress.step, loop.settings.total_steps
    if guard.requested is not None and not loop.finished:
        log(f"Stopped after step {done} of {total}. Continue with:\n{again}")
    else:
        _say_end(loop, run, log)
    return guard.exit_status


def _say_end(loop: Loop, run: Path, log: Callable[[str], None]) -> None:
    progress, best = loop.progress, loop.progress.best
    if loop.watch is not None and loop.is_stopped_early:
        reason = loop.watch.describe_wait(best)
        log(f"Stopped early, after step {progress.step} of {loop.settings.total_steps}: {reason}.")
    log(
        f"Done: {progress.step} steps, {progress.tokens:,} tokens. The trained model is {newest_checkpoint(run)}"
    )
    if best.value is not None:
        log(
            f"The best by {best.metric} ({best.value:.4f}) is {run / checkpoint_name(best.step)}; {run / BEST_NAME} "
            f"stands for it, as in\n  erniekit chat {shlex.quote(str(run / BEST_NAME))}"
        )


def _monitor(run: Path, config: Config, progress: Progress, dist: DistributedContext) -> Monitor:
    """Where figures go: of other processes than the main one below logs, where only their own are looked for."""
    if dist.is_main:
        return Monitor(run, tensorboard=config.log.tensorboard, start_step=progress.step)
    directory = run / "logs" / f"rank-{dist.mesh.rank}"
    directory.mkdir(parents=True, exist_ok=True)
    return Monitor(directory, tensorboard=False, start_step=progress.step)


def _devices(device: str, dist: DistributedContext) -> str:
    """What to add to a command for as many processes. GPUs are all used without being asked for."""
    size = dist.mesh.world.size
    return f" --devices cpu:{size}" if size > 1 and device == "cpu" else ""


def make_optimizer(config: Config, prepared: Prepared, reducer: GradientReducer | None = None) -> AdamW:
    """AdamW over the trained parameters, or this process's parts of them, with the groups of the configuration."""
    settings = config.optimizer
    return AdamW(
        prepared.trained if reducer is None else reducer.parameters,
        weight_decay=settings.weight_decay,
        beta1=settings.beta1,
        beta2=settings.beta2,
        epsilon=settings.epsilon,
        rules=[GroupRule(g.match, g.learning_rate_ratio, g.weight_decay) for g in settings.groups],
        router_ratio=settings.router_learning_rate_ratio,
        shapes=None if reducer is None else reducer.shapes,
        all_names=prepared.all_trained,
    )


def make_objective(
    config: Config,
    prepared: Prepared,
    inputs: Inputs,
    dtype: str,
    dist: DistributedContext,
    log: Callable[[str], None],
    changes: ModelChanges = NO_CHANGES,
) -> SftObjective | DpoObjective:
    """The loss of the run's task; with its reference model, where it has one."""
    model, loss = prepared.model, config.loss
    if config.task == "dpo":
        datasets = [
            rows.dataset
            for rows in (inputs.rows, inputs.heldout and inputs.heldout.rows)
            if isinstance(rows, StoredRows)
        ]

        def load_base() -> ErnieModel:
            # One process computes what is cached.
            mesh = None if config.dpo.reference == "cached" else dist.mesh
            return load_shared(Path(config.model.path), dtype, mesh, config.parallel.shard, changes)[0]

        reference = make_reference(config, model, dtype, datasets, load_base, log, dist)
        return make_dpo_objective(config, model, reference)
    return SftObjective(
        model,
        loss.chunk_tokens,
        normalization=loss.normalization,
        router_weights=RouterWeights(balance=loss.balance_weight, z=loss.z_weight),
    )


def make_loop(
    config: Config,
    plan: RunPlan,
    prepared: Prepared,
    objective: SftObjective | DpoObjective,
    optimizer: AdamW,
    inputs: Inputs,
    monitor: Monitor,
    console: Console,
    save: Callable[[Progress], None],
    progress: Progress,
    dist: DistributedContext,
    reducer: GradientReducer | None = None,
) -> Loop:
    """The loop over everything that was prepared."""
    model, loader = prepared.model, inputs.train
    loss = config.loss
    routers = Routers(
        model,
        orthogonal_weight=loss.orthogonal_weight,
        orthogonal_mode=loss.orthogonal_mode,
        bias_update_rate=loss.bias_update_rate,
    )

    together = None if dist.mesh.world.size == 1 else dist
    add = None if together is None else together.add

    return Loop(
        model=model,
        objective=objective,
        optimizer=optimizer,
        schedule=plan.schedule,
        rows=loader,
        settings=LoopSettings(
            total_steps=plan.total_steps,
            rows_per_step=config.train.rows_per_step,
            max_length=config.data.max_length,
            max_grad_norm=config.optimizer.max_grad_norm,
            seed=config.train.seed,
            log_every=config.log.every,
            eval_every=config.train.eval_every,
            save_every=config.checkpoint.save_every,
        ),
        monitor=monitor,
        console=console,
        save=save,
        routers=routers,
        reduce_totals=add,
        dist=together,
        reducer=reducer,
        skips=None if together is None else SkippedSampleSync(loader.budget, together),
        evaluate=make_evaluator(config, model, objective, inputs, dist, console.log),
        watch=make_early_stopping(config.eval),
        epoch=lambda: loader.epochs_done,
        progress=progress,
    )


def make_evaluator(
    config: Config,
    model: ErnieModel,
    objective: SftObjective | DpoObjective,
    inputs: Inputs,
    dist: DistributedContext,
    log: Callable[[str], None],
) -> Evaluator | None:
    """What measures the model on data.eval; None where that is empty."""
    if inputs.heldout is None:
        return None
    answers = EvalAnswers(config, model, inputs.encoder, dist, log) if config.eval.samples else None
    return Evaluator(model, objective, inputs.heldout, answers, dist, log)


def _say_changes(checkpoint: Path, state: TrainerState, config: Config, log: Callable[[str], None]) -> None:
    log(f"resuming from {checkpoint}, after step {state.step}")
    changes = changed_settings(with_defaults(state.config), config.model_dump())
    if changes:
        log("settings that differ from those of the checkpoint:")
        for line in changes:
            log(f"  {line}")
