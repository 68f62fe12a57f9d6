"""Records on disk which parts of a checkpoint each process has written in the background.

A process that failed, or that lost the others, cannot take part in collectives. Each process therefore has a file next
to its part of the checkpoint, which is locked until the part is written. The lock is released when the process ends,
even if it is killed, so that the others do not wait for it.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from erniekit.checkpoint.manifest import FileRecord, records_from

_PATTERN = "part-*.json"
POLL_SECONDS = 0.1


class PartFile:
    """The file of this process, opened before it writes its part of a checkpoint.

    POSIX locks belong to the process: closing any other handle of the file releases the lock.
    """

    def __init__(self, directory: Path, rank: int) -> None:
        """Create and lock the file. Raises OSError if it cannot be created."""
        self._stream = part_file(directory, rank).open("w")
        try:
            fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # A disk without locks: the others do not wait for this process.
            return

    def write(self, records: Mapping[str, FileRecord], error: str | None) -> None:
        """Say that the part is written, or that it cannot be."""
        try:
            self._stream.write(json.dumps({"files": records, "error": error}) + "\n")
            self._stream.flush()
        except OSError:
            # What is not written is reported as missing.
            return

    def close(self) -> None:
        """End the lock."""
        # A full disk: what `write` could not write.
        with suppress(OSError):
            self._stream.close()


def part_file(directory: Path, rank: int) -> Path:
    """The file of a process."""
    return directory / _PATTERN.replace("*", f"{rank:05d}")


def read_part(directory: Path, rank: int) -> tuple[dict[str, FileRecord], str | None] | None:
    """(records of its files, error) of another process; None if it has not written its part."""
    try:
        content = json.loads(part_file(directory, rank).read_text(encoding="utf-8"))
        return records_from(content["files"]), content["error"]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def wait_for_part(directory: Path, rank: int) -> tuple[dict[str, FileRecord], str | None] | None:
    """The part of another process, once it is written; None if that process ends before."""
    while (part := read_part(directory, rank)) is None and is_locked(part_file(directory, rank)):
        time.sleep(POLL_SECONDS)
    # It may have written its part and ended between the two.
    return part or read_part(directory, rank)


def is_locked(file: Path) -> bool:
    """Whether another process holds the lock of a part file."""
    try:
        with file.open("r+") as stream:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False


def part_files(directory: Path) -> list[Path]:
    """The files of all processes in the directory of a checkpoint."""
    return sorted(directory.glob(_PATTERN))


def is_saving(run: Path) -> bool:
    """Whether a process writes a checkpoint of a run in the background."""
    try:
        return any(is_locked(file) for file in run.glob(f"*checkpoint-*/{_PATTERN}"))
    except FileNotFoundError:
        # A checkpoint got its name, or was removed, meanwhile: a process is at work.
        return True
