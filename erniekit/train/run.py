"""One training run: processes, signals, and the closing messages."""

from __future__ import annotations

import math
import os
import signal
from contextlib import ExitStack
from pathlib import Path

from erniekit.checkpoint.state import newest_checkpoint
from erniekit.config import Config
from erniekit.display.output import forgiving_output
from erniekit.distributed.startup import reporting_failure
from erniekit.distributed.worker import worker_from
from erniekit.interrupt import SAME_REQUEST_SECONDS, InterruptGuard
from erniekit.kernels.choice import describe_forms
from erniekit.runtime import compute_dtype, configure
from erniekit.train.build import build_trainer
from erniekit.train.checkpointer import Checkpointer
from erniekit.train.console import make_console
from erniekit.train.distributed import check_same_model, init_distributed, plan_parallel_dims
from erniekit.train.ending import describe_end, describe_failure, resume_command
from erniekit.train.model import check_model, check_start
from erniekit.train.out_of_memory import explain_out_of_memory, is_out_of_memory
from erniekit.train.run_context import RunContext
from erniekit.train.run_directory import check_run_directory
from erniekit.train.trackers.installed import check_installed
from erniekit.train.trainer import Trainer

# SIGHUP: the terminal is closed, or the connection to it is lost.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedAtOnce(Exception):
    """A second signal has stopped the run at once. status: the process's exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def run_training(config: Config, *, resume: bool = False, force: bool = False) -> int:
    """Train with the given configuration; returns the process's exit status.

    The status is 0, or after an interrupt 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP); the run was saved then and can
    be resumed. Standard output may go away meanwhile. resume: continue from the newest complete checkpoint in
    train.output_dir, or begin where there is none. force: start even if the run cannot fit into memory. Raises
    ErnieKitError for whatever is wrong with configuration, data or files.
    """
    with forgiving_output():
        return _run_training(config, resume=resume, force=force)


def _run_training(config: Config, *, resume: bool, force: bool) -> int:
    worker = worker_from(os.environ)
    console = make_console(0 if worker is None else worker.rank)
    with reporting_failure([] if worker is None else [worker]):
        if worker is None or worker.rank == 0:
            check_installed(config.log)
        check_model(config.model.directory, console.log)
        if not resume:
            check_start(config)
        if worker is None or worker.rank == 0:
            check_run_directory(config, resume=resume)
        threads = config.parallel.threads or (worker.threads if worker is not None else None)
        device = configure(
            config.parallel.device,
            threads,
            config.train.seed,
            kernels=config.kernels.backend,
            attention=config.kernels.attention,
            deterministic=config.train.deterministic,
        )
        dims = plan_parallel_dims(config, 1 if worker is None else worker.world)
    dist = init_distributed(config, dims, worker)
    check_same_model(config, dist)
    console.log(describe_forms(compute_dtype(config.model.dtype, device)))
    try:
        status = train_together(RunContext(config, device, dist, console, force), resume=resume)
    except StoppedAtOnce as stopped:
        return stopped.status
    # Not after a stop at once or an error: other processes may be in the middle of a step. The launcher ends them.
    dist.close()
    return status


def train_together(context: RunContext, *, resume: bool) -> int:
    """Train with the other processes of the run, which call the same. See `run_training`.

    Raises StoppedAtOnce after a second signal.
    """
    try:
        with ExitStack() as stack:
            trainer, checkpointer = build_trainer(context, resume=resume, stack=stack)
            if trainer.is_finished:
                context.log("nothing is left to train: the checkpoint is that of the last step")
            status = _train(trainer, checkpointer, context)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = context.dist.mesh.world.size
        raise explain_out_of_memory(error, context.config, context.device, size) from error
    # Last, after what trackers print at their end.
    for line in describe_end(trainer, context.config, _device_option(context)):
        context.log(line)
    return status


def _train(trainer: Trainer, checkpointer: Checkpointer, context: RunContext) -> int:
    log, run_dir, devices = context.log, context.run_dir, _device_option(context)
    hint = "finishing this step, then saving. Press Ctrl-C again a few seconds later to stop at once."
    with InterruptGuard(
        lambda name: log(f"{name}: {hint}"), _STOP_SIGNALS, same_seconds=SAME_REQUEST_SECONDS
    ) as guard:
        try:
            trainer.train(guard)
        except KeyboardInterrupt:
            log(f"Stopped at once. {_loss(checkpointer, run_dir)}")
            if newest_checkpoint(run_dir) is not None:
                log(f"Continue with:\n  {resume_command(run_dir, devices)}")
            raise StoppedAtOnce(guard.exit_status) from None
        except Exception as error:
            _finish_saving(checkpointer, context)
            if context.dist.mesh.world.size == 1:  # otherwise the launcher says it
                error.add_note(describe_failure(run_dir, devices))
            raise
    return guard.exit_status


def _finish_saving(checkpointer: Checkpointer, context: RunContext) -> None:
    """After an error here or in another process: finish the checkpoint that is written in the background.

    A launcher that ends the run sends SIGTERM, which is no reason to stop, nor is a terminal that closes; Ctrl-C is one
    if it is pressed twice.
    """
    log = context.log
    hint = "finishing the checkpoint. Press Ctrl-C again to stop at once."
    with (
        InterruptGuard(signals=[signal.SIGTERM, signal.SIGHUP], same_seconds=math.inf),
        InterruptGuard(
            lambda name: log(f"{name}: {hint}"), [signal.SIGINT], same_seconds=SAME_REQUEST_SECONDS
        ),
    ):
        try:
            checkpointer.finish_after_error()
            checkpointer.close()
        except KeyboardInterrupt:
            log(f"Stopped at once. {_loss(checkpointer, context.run_dir)}")


def _loss(checkpointer: Checkpointer, run_dir: Path) -> str:
    """What a stop at once loses, as sentences."""
    step, newest = checkpointer.saving_step, newest_checkpoint(run_dir)
    saving = "" if step is None else f"The checkpoint of step {step} was being written and is lost. "
    if newest is None:
        return f"{saving}There is no complete checkpoint."
    return f"{saving}The newest complete checkpoint is {newest.name}; steps after it are lost."


def _device_option(context: RunContext) -> str:
    """The option that starts the same number of processes again. GPUs need none: a run uses all visible ones."""
    size = context.dist.mesh.world.size
    return f" --devices cpu:{size}" if size > 1 and context.device == "cpu" else ""
