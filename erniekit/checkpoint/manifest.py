"""Sizes and checksums of the files of a checkpoint, computed while the files are written."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import xxhash

from erniekit.local_files import placeholder_problem

CHECKSUMS_FILE = "checksums.json"
# Bytes that are hashed and then written at a time, so that they are still in the processor's cache.
_CHUNK = 4 << 20


class FileRecord(NamedTuple):
    """The size of a file in bytes, and its XXH3 checksum (128 bits, hexadecimal)."""

    size: int
    checksum: str


class RecordedFile:
    """A new file. When it is closed, it is synced to disk, and `record` describes it."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._digest = xxhash.xxh3_128()
        self._size = 0

    def __enter__(self) -> RecordedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._stream.flush()
                os.fsync(self._stream.fileno())
        finally:
            self._stream.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK):
            chunk = view[start : start + _CHUNK]
            self._digest.update(chunk)
            self._stream.write(chunk)
        self._size += len(view)

    @property
    def record(self) -> FileRecord:
        """Size and checksum of what was written."""
        return FileRecord(self._size, self._digest.hexdigest())


def read_record(path: Path) -> FileRecord:
    """Size and checksum of an existing file, which is read from start to end."""
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(size, digest.hexdigest())


def size_problem(file: Path, record: FileRecord) -> str | None:
    """Why a file cannot be the one of `record`, by its size alone; None if it can."""
    try:
        # Once: a run may remove the checkpoint meanwhile.
        status = file.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"{file.name} is missing"
        return f"{file.name} cannot be read: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"{file.name} is missing"
    if status.st_size == record.size:
        return None
    pointer = placeholder_problem(file)
    return f"{file.name} {pointer or f'has {status.st_size} bytes instead of {record.size}'}"


def checksum_problems(directory: Path, records: Iterable[tuple[str, FileRecord]]) -> list[str]:
    """The files that differ from their records, found by reading them. Records without a checksum are skipped."""
    problems = []
    for name, record in records:
        file = directory / name
        try:
            problem = size_problem(file, record)
            if problem is None and record.checksum and read_record(file) != record:
                problem = f"{name} is damaged: its checksum differs from the one that was written"
        except OSError as error:
            # A failing disk, or a file of another user.
            problem = f"{name} cannot be read: {error.strerror}"
        if problem is not None:
            problems.append(problem)
    return problems


def write_checksums(directory: Path, records: Mapping[str, FileRecord]) -> None:
    """Write the records of an export's shards as `CHECKSUMS_FILE`."""
    text = json.dumps({"files": records}, indent=1) + "\n"
    (directory / CHECKSUMS_FILE).write_text(text, encoding="utf-8")


def records_from(content: Any) -> dict[str, FileRecord]:
    """The records in a JSON value. Checkpoints of format 1 have sizes only. Raises ValueError or TypeError."""
    return {
        str(name): FileRecord(entry, "")
        if isinstance(entry, int)
        else FileRecord(int(entry[0]), str(entry[1]))
        for name, entry in dict(content).items()
    }
