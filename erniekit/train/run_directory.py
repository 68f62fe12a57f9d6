"""The directory of a run: checks before a run writes to it, and its configuration file."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from erniekit.checkpoint.base import BASE_FILE
from erniekit.checkpoint.best import BEST_FILE
from erniekit.checkpoint.manifest import checksum_problems
from erniekit.checkpoint.state import checkpoint_step, file_records, find_checkpoints
from erniekit.config import Config, dump_config
from erniekit.distributed.context import DistributedContext
from erniekit.errors import CheckpointError, ConfigError
from erniekit.local_files import replacing
from erniekit.train.describe import format_bytes
from erniekit.train.ending import CONFIG_FILE, REPORT_FILE
from erniekit.train.hooks.profiler import PROFILE_DIR
from erniekit.train.metrics_writer import LOG_FILE
from erniekit.train.nonfinite import NONFINITE_DIR
from erniekit.train.run_lock import refuse_second_run
from erniekit.train.trackers.hosted import SWANLAB_DIR, TRACKERS_FILE, WANDB_DIR
from erniekit.train.trackers.tensorboard import TENSORBOARD_DIR

_PREVIOUS_CONFIG = "config.previous.yaml"
# Files that a run writes before its first checkpoint, and suffixes of files with the output of a command.
_OWN = {
    *(CONFIG_FILE, _PREVIOUS_CONFIG, LOG_FILE, BEST_FILE, BASE_FILE, REPORT_FILE, TRACKERS_FILE),
    *(TENSORBOARD_DIR, PROFILE_DIR, NONFINITE_DIR, WANDB_DIR, SWANLAB_DIR, "logs", "eval"),
}
_OUTPUTS = {".log", ".out", ".err"}


def check_run_directory(config: Config, *, resume: bool) -> None:
    """Check that a run may start in train.output_dir or, with `resume`, continue there.

    Without a checkpoint, both start at the first step, so that a run that ended before its first checkpoint can be
    started again. Raises ConfigError if the directory has files that are not from a run.
    """
    run = Path(config.train.output_dir)
    existing = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"train.output_dir: {existing} is not a directory; choose another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"train.output_dir: {existing} cannot be written to; choose another directory")
    if not run.exists():
        return
    refuse_second_run(run)
    found = find_checkpoints(run)
    if found and not resume:
        raise ConfigError(
            f"train.output_dir: {run} is not empty. Add --resume to continue its run from {found[0].path.name}, or "
            "choose another directory for a new run (train.output_dir=...)"
        )
    foreign = (
        None
        if found
        else next((entry for entry in sorted(run.iterdir()) if not _is_own(entry, config)), None)
    )
    if foreign is not None:
        raise ConfigError(
            f"train.output_dir: {run} is not empty, and no run has written {foreign.name}. There is no checkpoint to "
            "resume from: choose another directory (train.output_dir=...), or move the files away"
        )


def refuse_moved_run(file: Path, config: Config) -> None:
    """Raise ConfigError if `file` is the configuration in a run's directory, and train.output_dir is another one.

    --resume would continue another run then, or begin a new one. The run was moved or copied, or its train.output_dir
    is relative to another working directory.
    """
    here, named = file.parent, Path(config.train.output_dir)
    if file.name != CONFIG_FILE or here.resolve() == named.resolve() or not find_checkpoints(here):
        return
    option = shlex.quote(f"train.output_dir={here}")
    raise ConfigError(
        f"{file}: the run in {here} was moved or copied, or started from another directory: its train.output_dir is "
        f"{named}, where --resume would look for checkpoints. Add {option} to continue the run in {here}"
    )


def checkpoint_to_resume(
    run: Path, dist: DistributedContext, log: Callable[[str], None], *, shared: bool
) -> Path | None:
    """The newest complete and undamaged checkpoint of a run; None if there are no checkpoints.

    All processes call it together, and each checks the checksums of a part of the files. shared: as in
    checkpoint.shared. Raises CheckpointError if no checkpoint can be used: a new run would overwrite them.
    """
    listings = dist.all_gather_object({found.path.name: found.problem for found in find_checkpoints(run)})
    reasons = {}
    names = sorted({name for listing in listings for name in listing}, key=checkpoint_step, reverse=True)
    for name in names:
        problems = [listing.get(name, "it is missing on another machine") for listing in listings]
        problem = next((problem for problem in problems if problem is not None), None)
        problem = problem or _find_damage(run / name, dist, shared)
        if problem is None:
            return run / name
        log(f"skipping {run / name}: {problem}")
        reasons[name] = problem
    if names:
        raise CheckpointError(
            f"{run}: there is no complete checkpoint to resume from; {names[0]}: {reasons[names[0]]}. Restore its "
            "files, or remove it to start again"
        )
    log(f"{run}: there is no checkpoint to resume from yet; the run starts at its first step")
    return None


def _find_damage(checkpoint: Path, dist: DistributedContext, shared: bool) -> str | None:
    """The problem of the first file with a wrong checksum; None if all are right. The processes that share a disk read
    different files."""
    mesh = dist.mesh
    first, step = (mesh.rank, mesh.world.size) if shared else (mesh.rank - mesh.machine, mesh.local_size)
    records = sorted(file_records(checkpoint).items(), key=lambda item: item[1].size)
    with mesh.long_operation("reading the checkpoint"):
        problems = checksum_problems(checkpoint, records[first::step])
    return next((problem for found in dist.all_gather_object(problems) for problem in found), None)


def begin_run(config: Config, log: Callable[[str], None]) -> None:
    """Write the configuration, and delete files of an earlier run that ended before its first checkpoint.

    A different configuration in the directory is renamed, since the user may have written it.
    """
    run = Path(config.train.output_dir)
    if (run / LOG_FILE).exists():
        log(f"{run}: the run in it ended before its first checkpoint; it starts again")
    for aside in run.glob(".checkpoint-*.tmp"):
        shutil.rmtree(aside)
    for name in (BEST_FILE, TRACKERS_FILE, REPORT_FILE):
        (run / name).unlink(missing_ok=True)
    file = run / CONFIG_FILE
    if file.exists() and file.read_bytes() != dump_config(config).encode():
        file.replace(run / _PREVIOUS_CONFIG)
        log(f"{file} differs from the configuration of this run; it is now {run / _PREVIOUS_CONFIG}")
    write_config(config)


def write_config(config: Config) -> None:
    """Write the resolved configuration into the run's directory."""
    with replacing(Path(config.train.output_dir) / CONFIG_FILE) as file:
        file.write(dump_config(config))


def check_space(
    config: Config, nbytes: int, *, is_new: bool, dist: DistributedContext, log: Callable[[str], None]
) -> None:
    """Check that the disk of a run has room for its checkpoints. All processes call it together.

    nbytes: of one. Raises ConfigError if a new run cannot save even one: it would end without a model.
    """
    run, keep = Path(config.train.output_dir), config.checkpoint.keep + (config.eval.best_metric is not None)
    needed = nbytes * max(1, keep + 1 - len(find_checkpoints(run)))
    free = dist.all_gather_object(shutil.disk_usage(run).free)[0]
    size = format_bytes(nbytes)
    room = f"{run.absolute()} has {format_bytes(free)} of free disk space, and a checkpoint takes {size}"
    if is_new and free < nbytes:
        raise ConfigError(f"train.output_dir: {room}; make room, or choose another directory")
    if free < needed:
        log(
            f"note: {room}: the {keep} that are kept, and the next one beside them, need {format_bytes(needed)}. "
            "Without room a checkpoint is not saved; see checkpoint.keep"
        )


@contextmanager
def writing_to(run: Path) -> Iterator[None]:
    """Inside, the first files of a run are written. Raises ConfigError if that fails."""
    try:
        yield
    except OSError as error:
        where = error.filename or run
        raise ConfigError(
            f"train.output_dir: {where} cannot be written: {error.strerror}; make room, or choose another directory"
        ) from None


def make_run_directory(run: Path) -> None:
    """Create the directory of a run if it does not exist. Raises ConfigError."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.output_dir: {run} cannot be created: {error.strerror}") from None


def _is_own(entry: Path, config: Config) -> bool:
    """Whether an entry may exist before the first checkpoint: written by a run, output of a command, or hidden."""
    cache = config.data.cache_dir
    holds_cache = cache is not None and Path(cache).resolve().is_relative_to(entry.resolve())
    hidden, output = entry.name.startswith("."), entry.suffix in _OUTPUTS and entry.is_file()
    return entry.name in _OWN or hidden or output or holds_cache
