"""The directory of a run: checks before a run writes to it, its lock, and its configuration file."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from erniekit.checkpoint.best import BEST_FILE
from erniekit.checkpoint.state import find_checkpoints
from erniekit.config import Config, dump_config
from erniekit.errors import CheckpointError, ConfigError
from erniekit.train.hooks.profiler import PROFILE_DIR
from erniekit.train.metrics_writer import LOG_FILE, TENSORBOARD_DIR

CONFIG_FILE = "config.yaml"
_PREVIOUS_CONFIG = "config.previous.yaml"
_LOCK = ".run.lock"
# Files that a run writes before its first checkpoint, and suffixes of files with the output of a command.
_OWN = {CONFIG_FILE, _PREVIOUS_CONFIG, LOG_FILE, TENSORBOARD_DIR, BEST_FILE, PROFILE_DIR, "logs", "eval"}
_OUTPUTS = {".log", ".out", ".err"}


def check_run_directory(config: Config, *, resume: bool) -> None:
    """Check that a run may start in train.output_dir or, with `resume`, continue there.

    Without a checkpoint both start at the first step, so that a run that died before its first checkpoint can be
    started again either way. Raises ConfigError where the directory holds files that no run has written.
    """
    run = Path(config.train.output_dir)
    existing = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"train.output_dir: {existing} is not a directory; choose another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"train.output_dir: {existing} cannot be written to; choose another directory")
    if not run.exists():
        return
    _refuse_second_run(run)
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


def checkpoint_to_resume(run: Path, log: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint of a run; None where there is no checkpoint.

    Raises CheckpointError where all checkpoints are incomplete: a new run would overwrite them.
    """
    found = find_checkpoints(run)
    for checkpoint in found:
        if checkpoint.problem is None:
            return checkpoint.path
        log(f"skipping {checkpoint.path}, which is incomplete: {checkpoint.problem}")
    if found:
        raise CheckpointError(
            f"{run}: there is no complete checkpoint to resume from. Restore the files of {found[0].path.name}, or "
            "remove it to start again"
        )
    log(f"{run}: there is no checkpoint to resume from yet; the run starts at its first step")
    return None


def begin_run(config: Config, log: Callable[[str], None]) -> None:
    """Write the configuration, and remove files of an earlier run that died before its first checkpoint.

    A different configuration in the directory is kept under another name: a person may have written it.
    """
    run = Path(config.train.output_dir)
    if (run / LOG_FILE).exists():
        log(f"{run}: the run in it ended before its first checkpoint; it starts again")
    for aside in run.glob(".checkpoint-*.tmp"):
        shutil.rmtree(aside)
    (run / BEST_FILE).unlink(missing_ok=True)
    file = run / CONFIG_FILE
    if file.exists() and file.read_bytes() != dump_config(config).encode():
        file.replace(run / _PREVIOUS_CONFIG)
        log(f"{file} differs from the configuration of this run; it is now {run / _PREVIOUS_CONFIG}")
    write_config(config)


def write_config(config: Config) -> None:
    """Write the resolved configuration into the run's directory."""
    file = Path(config.train.output_dir) / CONFIG_FILE
    file.write_text(dump_config(config), encoding="utf-8")


def make_run_directory(run: Path) -> None:
    """Create the directory of a run if it does not exist. Raises ConfigError."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.output_dir: {run} cannot be created: {error.strerror}") from None


@contextmanager
def lock_run_directory(run: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Lock the directory while this run trains. The lock ends with the process, however the process ends.

    Raises ConfigError where another process holds the lock.
    """
    with (run / _LOCK).open("a") as file:
        try:
            _lock(file, run)
        except OSError as error:
            log(f"note: the disk of {run} has no locks ({error.strerror}); do not start another run in it")
        yield


def _refuse_second_run(run: Path) -> None:
    """Raise ConfigError where another process trains in a directory."""
    try:
        with (run / _LOCK).open("r+") as file:
            _lock(file, run)
    except OSError:
        # No run has used the directory, or the disk has no locks, which `lock_run_directory` logs.
        return


def _lock(file: IO[str], run: Path) -> None:
    """Lock for the process, not for the open file: worker processes that outlive the process do not hold it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ConfigError(
            f"train.output_dir: another process trains in {run}; wait until it ends, or choose another directory "
            "(train.output_dir=...)"
        ) from None


def _is_own(entry: Path, config: Config) -> bool:
    """Whether an entry may be there before the first checkpoint: written by a run, output of a command, or hidden."""
    cache = config.data.cache_dir
    holds_cache = cache is not None and Path(cache).resolve().is_relative_to(entry.resolve())
    hidden, output = entry.name.startswith("."), entry.suffix in _OUTPUTS and entry.is_file()
    return entry.name in _OWN or hidden or output or holds_cache
