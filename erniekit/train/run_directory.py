"""The directory of a run: whether one may begin or go on there, and that one run at a time writes to it."""

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
from erniekit.train.metrics_writer import LOG_FILE, TENSORBOARD_DIR

CONFIG_FILE = "config.yaml"
_PREVIOUS_CONFIG = "config.previous.yaml"
_LOCK = ".run.lock"
# What a run writes before its first checkpoint, and what people and schedulers send a run's output to.
_OWN = {CONFIG_FILE, _PREVIOUS_CONFIG, LOG_FILE, TENSORBOARD_DIR, BEST_FILE, "logs", "eval"}
_OUTPUTS = {".log", ".out", ".err"}


def check_run_directory(config: Config, *, resume: bool) -> None:
    """Whether a run may begin in train.output_dir or, with `resume`, go on there.

    Where there is no checkpoint both begin at the first step, so that a run that died before it saved anything can be
    started again either way. Raises ConfigError where a run would write beside what is not its own.
    """
    run = Path(config.train.output_dir)
    there = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"train.output_dir: {there} is not a directory; choose another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"train.output_dir: {there} cannot be written to; choose another directory")
    if not run.exists():
        return
    _refuse_second_run(run)
    found = find_checkpoints(run)
    if found and not resume:
        raise ConfigError(
            f"train.output_dir: {run} is not empty. Add --resume to continue the run in it, whose newest checkpoint is "
            f"{found[0].path.name}, or choose another directory for a new one (train.output_dir=...)"
        )
    foreign = (
        None
        if found
        else next((entry for entry in sorted(run.iterdir()) if not _is_own(entry, config)), None)
    )
    if foreign is not None:
        raise ConfigError(
            f"train.output_dir: {run} is not empty, and no run has written {foreign.name}. There is no checkpoint to "
            "resume from: choose another directory (train.output_dir=...), or move what is there"
        )


def checkpoint_to_resume(run: Path, log: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint of a run; None where none was ever saved.

    Raises CheckpointError where all are incomplete: to begin again would overwrite them.
    """
    found = find_checkpoints(run)
    for checkpoint in found:
        if checkpoint.problem is None:
            return checkpoint.path
        log(f"passing over {checkpoint.path}, which is incomplete: {checkpoint.problem}")
    if found:
        raise CheckpointError(
            f"{run}: there is no complete checkpoint to resume from. Bring the files of {found[0].path.name} back, or "
            "remove it to begin again"
        )
    log(f"{run}: there is no checkpoint to resume from yet; the run begins at its first step")
    return None


def begin_run(config: Config, log: Callable[[str], None]) -> None:
    """Remove what a run in the same directory left that died before its first checkpoint, and write the configuration.

    A configuration that is there and reads otherwise is kept under another name: people may have written it.
    """
    run = Path(config.train.output_dir)
    if (run / LOG_FILE).exists():
        log(f"{run}: the run in it ended before its first checkpoint; it begins again")
    for aside in run.glob(".checkpoint-*.tmp"):
        shutil.rmtree(aside)
    (run / BEST_FILE).unlink(missing_ok=True)
    file = run / CONFIG_FILE
    if file.exists() and file.read_bytes() != dump_config(config).encode():
        file.replace(run / _PREVIOUS_CONFIG)
        log(f"{file} is another one than this run's; it is now {run / _PREVIOUS_CONFIG}")
    write_config(config)


def write_config(config: Config) -> None:
    """Write the resolved configuration into the run's directory."""
    file = Path(config.train.output_dir) / CONFIG_FILE
    file.write_text(dump_config(config), encoding="utf-8")


def make_run_directory(run: Path) -> None:
    """Make the directory of a run where it is not there. Raises ConfigError."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.output_dir: {run} cannot be made: {error.strerror}") from None


@contextmanager
def lock_run_directory(run: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Keep other runs out while this one trains. However the process ends, the directory is free again.

    Raises ConfigError where another process has it.
    """
    with (run / _LOCK).open("a") as file:
        try:
            _lock(file, run)
        except OSError as error:
            log(f"note: the disk of {run} has no locks ({error.strerror}); let no other run write there")
        yield


def _refuse_second_run(run: Path) -> None:
    """Raise ConfigError where another process trains in a directory."""
    try:
        with (run / _LOCK).open("r+") as file:
            _lock(file, run)
    except OSError:
        # Nobody has ever trained there, or it cannot be known; `hold_directory` tells.
        return


def _lock(file: IO[str], run: Path) -> None:
    """Of the process, not of the open file: worker processes that outlive it do not hold it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ConfigError(
            f"train.output_dir: another process trains in {run} now; wait for its end, or choose another directory "
            "(train.output_dir=...)"
        ) from None


def _is_own(entry: Path, config: Config) -> bool:
    """Whether a run writes such an entry before its first checkpoint, or it is the output of a command, or hidden."""
    cache = config.data.cache_dir
    holds_cache = cache is not None and Path(cache).resolve().is_relative_to(entry.resolve())
    hidden, output = entry.name.startswith("."), entry.suffix in _OUTPUTS and entry.is_file()
    return entry.name in _OWN or hidden or output or holds_cache
