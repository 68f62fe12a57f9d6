"""The directory of an export: files appear in it only when all of them are complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erniekit.errors import CheckpointError
from erniekit.interrupt import exit_on_signals
from erniekit.scratch import UNFINISHED, scratch_directory

# Tokenizer, configurations and the index of shards.
_SIDE_BYTES = 64 << 20


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
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with exit_on_signals(), scratch_directory(parent, f".{output.absolute().name}.", UNFINISHED) as aside:
            yield aside
    except OSError as error:
        file = "" if error.filename is None else f" ({error.filename})"
        raise CheckpointError(f"{output}: it cannot be written: {error.strerror or error}{file}") from error


def _is_staging(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(UNFINISHED)
