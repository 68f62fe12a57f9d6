"""Directories for files that are not complete. What a killed process leaves is removed by the next one."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".unfinished"
"""Ends the names of hidden directories beside, or in, the directory that they become."""
_TOKEN_BYTES = 4


@contextmanager
def scratch_directory(parent: Path, prefix: str, suffix: str = "", mode: int = 0o777) -> Iterator[Path]:
    """A new directory in `parent` with this prefix and suffix, removed at the end of the block.

    Directories of the same prefix and suffix that belong to no living process are removed first. mode: as in
    `Path.mkdir`. Raises OSError.
    """
    _remove_abandoned(parent, prefix, suffix)
    directory, descriptor = _locked_directory(parent, prefix, suffix, mode)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """A `scratch_directory` in the system's directory of temporary files, for this user alone."""
    with scratch_directory(Path(tempfile.gettempdir()), prefix, mode=0o700) as directory:
        yield directory


def _locked_directory(parent: Path, prefix: str, suffix: str, mode: int) -> tuple[Path, int]:
    """A new directory, and a descriptor with a lock on it, by which others see that it is in use."""
    while True:
        directory = parent / f"{prefix}{secrets.token_hex(_TOKEN_BYTES)}{suffix}"
        directory.mkdir(mode)
        descriptor = _open(directory)
        # Network disks may have no locks on directories, and then nobody removes it.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if directory.exists():  # nobody removed it before it was locked
            return directory, descriptor
        os.close(descriptor)


def _remove_abandoned(parent: Path, prefix: str, suffix: str) -> None:
    """Remove directories of `_locked_directory` without a living process."""
    pattern = re.compile(f"{re.escape(prefix)}[0-9a-f]{{{2 * _TOKEN_BYTES}}}{re.escape(suffix)}")
    for name in os.listdir(parent):
        if pattern.fullmatch(name) is None:
            continue
        # Another user's directory, one in use, or one that another process removes.
        with suppress(OSError):
            descriptor = _open(parent / name)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(parent / name, ignore_errors=True)
            finally:
                os.close(descriptor)


def _open(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
