"""Records of data files, invalid lines, and positions in files."""

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
"""Limit of one record: enough for a video in base64. Damaged or malicious files may have lines without end."""
_MAX_VALUES = 4_000_000
_MANY_BYTES = 16 << 20
MAX_EMPTY_LINES = 1_000_000

# Whether this process reads the record of a number, counted from 0.
IsOwn = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in a file: the records (including invalid lines), bytes and lines before it.

    Bytes and lines are only used for JSON lines, where reading can start in the middle; other kinds skip records.
    """

    records: int = 0
    offset: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    value: the parsed JSON; sample_id: "file:line"; bytes_read: the offset of its end in the file (approximate, except
    for JSON lines); after: the position behind it.
    """

    value: Any
    sample_id: str
    bytes_read: int
    after: Cursor


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not a valid record. Reading can continue after it."""

    error: SampleError
    bytes_read: int
    after: Cursor


@dataclass(frozen=True, slots=True)
class Passed:
    """A record that was skipped because another process reads it."""

    after: Cursor


@dataclass(frozen=True, slots=True)
class Stream:
    """An open data file. raw: the file on disk; file: its content after decompression, or the same file."""

    raw: BinaryIO
    file: BinaryIO | gzip.GzipFile

    def bytes_read(self, position: int) -> int:
        """The offset in the file on disk for a position in the content."""
        return position if self.file is self.raw else self.raw.tell()


def bounded_lines(path: Path, stream: Stream, number: int = 0) -> Iterator[bytes]:
    """The lines of a file. number: the number of lines before.

    Raises DataError for a line that is too long, and for too many empty lines in a row.
    """
    empty = 0
    while line := stream.file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) > MAX_RECORD_BYTES:
            raise too_large(f"{path}:{number}")
        empty = empty + 1 if line.isspace() else 0
        if empty > MAX_EMPTY_LINES:
            raise DataError(f"{path}:{number}: {MAX_EMPTY_LINES:,} empty lines in a row: the file is damaged")
        yield line


def too_large(place: str) -> DataError:
    """The error for a record over the limit."""
    return DataError(f"{place}: the record has more than {MAX_RECORD_BYTES >> 20} MiB, the limit")


def check_values(place: str, text: bytes | str) -> None:
    """Raise DataError for the JSON of a record with too many values for the memory."""
    if len(text) > _MANY_BYTES:  # which nearly no record has
        check_size(place, 0, most_values(text))


def check_size(place: str, size: int, values: int) -> None:
    """Raise DataError for a record of so many bytes and values."""
    if size > MAX_RECORD_BYTES:
        raise too_large(place)
    if values > _MAX_VALUES:
        raise DataError(f"{place}: the record has more than {_MAX_VALUES:,} values, the limit")
