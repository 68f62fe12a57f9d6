"""The directory of an export: files appear in it only when all of them are complete."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from erniekit.errors import CheckpointError
from erniekit.interrupt import exit_on_signals

# Tokenizer, configurations and the index of shards.
_SIDE_BYTES = 64 << 20
# Ends the names of hidden directories for files that are not complete.
_STAGING = ".unfinished"


def check_output(output: Path) -> None:
    """Raise CheckpointError unless an output directory is new or empty, apart from what killed commands left."""
    if output.is_symlink() and not output.exists():
        raise CheckpointError(f"{output}: a symbolic link to something that is not there; remove it first")
    if output.exists() and (not output.is_dir() or not all(map(_is_staging, output.iterdir()))):
        raise CheckpointError(
            f"{output}: not an empty directory; choose another --output, or remove it first"
        )


@contextmanager
def replacing(output: Path, nbytes: int) -> Iterator[Path]:
    """A directory for the files of `output`. They appear there at the end of the block, and never if the block fails.

    A new output is a rename. An empty directory that is there stays, since it may be a mount point, a link or the
    working directory: files are moved into it, `config.json` last. nbytes: of the weights; checked against the free
    space of the disk. Raises CheckpointError.
    """
    check_output(output)
    with staging(output) as aside:
        free, needed = shutil.disk_usage(aside).free, nbytes + _SIDE_BYTES
        if free < needed:
            raise CheckpointError(
                f"{output}: the disk has {free / 1e9:,.1f} GB free and {needed / 1e9:,.1f} GB are needed; "
                "free some, or choose a directory on another disk"
            )
        yield aside
        if not output.exists():
            aside.replace(output)
            return
        check_output(output)
        for file in sorted(aside.iterdir(), key=lambda file: file.name.endswith("config.json")):
            file.replace(output / file.name)


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A new hidden directory on the disk of `output`: in it if it is there, else beside it.

    It is removed at the end of the block, also after Ctrl-C, SIGTERM and SIGHUP. What killed commands left for the same
    output is removed first. Raises CheckpointError for a directory that cannot be written.
    """
    parent = output if output.is_dir() else output.parent
    locked: tuple[Path, int] | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with exit_on_signals():
            _remove_abandoned(parent, output.absolute().name)
            locked = _locked_directory(parent, output.absolute().name)
            yield locked[0]
    except OSError as error:
        file = "" if error.filename is None else f" ({error.filename})"
        raise CheckpointError(f"{output}: it cannot be written: {error.strerror or error}{file}") from error
    finally:
        if locked is not None:
            shutil.rmtree(locked[0], ignore_errors=True)
            os.close(locked[1])


def _locked_directory(parent: Path, name: str) -> tuple[Path, int]:
    """A new directory, and a descriptor with a lock on it, by which others see that it is in use."""
    while True:
        directory = parent / f".{name}.{secrets.token_hex(4)}{_STAGING}"
        directory.mkdir()
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        # Network disks may have no locks on directories, and then nobody removes it.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if directory.exists():  # nobody removed it before it was locked
            return directory, descriptor
        os.close(descriptor)


def _remove_abandoned(parent: Path, name: str) -> None:
    """Remove directories of `_locked_directory` without a living process."""
    for directory in parent.iterdir():
        if not _is_staging(directory) or directory.name.rpartition(".")[0].rpartition(".")[0] != f".{name}":
            continue
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(descriptor)


def _is_staging(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(_STAGING)
