"""What reading a data file gives: records, bad lines, and where reading can go on."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from erniekit.data.chat.conversation import SampleError

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
