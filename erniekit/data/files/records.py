"""What reading a data file gives: records, bad lines, and where reading can go on."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from erniekit.data.chat.conversation import SampleError
from erniekit.errors import DataError
from erniekit.local_files import most_values

MAX_RECORD_BYTES = 256 << 20
"""Of a record: a video in base64 is the largest that there is. Damaged and hostile files have no ends of lines."""
_MAX_VALUES = 4_000_000
_MANY_BYTES = 16 << 20
_MAX_EMPTY_LINES = 1_000_000

# Of a record, by its number in the file from 0: whether this process reads it.
IsOwn = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where reading can go on: after how many records (bad lines included), bytes and lines.

    The last two are for JSON lines, which are entered in the middle; other kinds pass over the records.
    """

    records: int = 0
    offset: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    value: the parsed JSON; sample_id: "file:line"; bytes_read: how far into the file it ends (about, where
    the file is not JSON lines); after: where reading goes on after it.
    """

    value: Any
    sample_id: str
    bytes_read: int
    after: Cursor


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no record. Its neighbours can still be read: whoever reads decides whether to go on."""

    error: SampleError
    bytes_read: int
    after: Cursor


@dataclass(frozen=True, slots=True)
class Passed:
    """A record that was passed over, since another process reads it."""

    after: Cursor


@dataclass(frozen=True, slots=True)
class Stream:
    """An open data file. raw: the file on the disk; file: its content, which is something else if it is compressed."""

    raw: BinaryIO
    file: BinaryIO | gzip.GzipFile

    def bytes_read(self, position: int) -> int:
        """How far into the file on the disk a position in its content is."""
        return position if self.file is self.raw else self.raw.tell()


def bounded_lines(path: Path, stream: Stream, number: int = 0) -> Iterator[bytes]:
    """The lines of a file. number: of lines before.

    Raises DataError for a line without end, and for empty lines without end.
    """
    empty = 0
    while line := stream.file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) > MAX_RECORD_BYTES:
            raise too_large(f"{path}:{number}")
        empty = empty + 1 if line.isspace() else 0
        if empty > _MAX_EMPTY_LINES:
            raise DataError(
                f"{path}:{number}: {_MAX_EMPTY_LINES:,} empty lines in a row: the file is damaged"
            )
        yield line


def too_large(place: str) -> DataError:
    """The error for a record over the limit."""
    return DataError(f"{place}: the record has more than {MAX_RECORD_BYTES >> 20} MiB, the limit")


def check_values(place: str, text: bytes | str) -> None:
    """Raise DataError for the JSON of a record of so many values that memory would not hold them."""
    if len(text) <= _MANY_BYTES:  # most records, at no cost
        return
    if most_values(text) > _MAX_VALUES:
        raise DataError(f"{place}: the record has more than {_MAX_VALUES:,} JSON values, the limit")
