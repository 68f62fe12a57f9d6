"""Reads the records of a data file one by one, each with the line on which it starts."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniekit.data.conversation import SampleError
from erniekit.errors import DataError

_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    value: the parsed JSON; sample_id: "file:line"; bytes_read: how far into the file it ends.
    """

    value: Any
    sample_id: str
    bytes_read: int


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not JSON. Its neighbours can still be read: whoever reads decides whether to go on."""

    error: SampleError
    bytes_read: int


def read_records(path: Path) -> Iterator[Record | BadLine]:
    """The records of a file in order: JSON lines, or one JSON array, whatever the file is called.

    UTF-8, with or without a byte order mark; blank lines are passed over. JSON lines are streamed; an array
    is read whole. Raises DataError when the file cannot be read, holds no record, or is an array with a
    syntax error.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(codecs.BOM_UTF8))
            start = len(codecs.BOM_UTF8) if head == codecs.BOM_UTF8 else 0
            file.seek(start)
            first = _first_character(file.read(1 << 16))
            file.seek(start)
            records = _array(path, file.read(), start) if first == b"[" else _lines(path, file, start)
            empty = True
            for record in records:
                empty = False
                yield record
    except OSError as error:
        raise DataError(f"{path}: cannot read the data file: {error.strerror or error}") from error
    if empty:
        raise DataError(f"{path}: the data file has no samples; expected JSON lines or one JSON array")


def _first_character(head: bytes) -> bytes:
    return head.lstrip()[:1]


def _lines(path: Path, lines: Iterator[bytes], offset: int) -> Iterator[Record | BadLine]:
    for number, line in enumerate(lines, 1):
        offset += len(line)
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield Record(json.loads(line.decode("utf-8")), place, offset)
        except UnicodeDecodeError as error:
            detail = f"not UTF-8 text (byte {error.start + 1} of the line): save the file as UTF-8"
            yield BadLine(SampleError(place, "invalid JSON", detail), offset)
        except json.JSONDecodeError as error:
            detail = f"not valid JSON: {error.msg} (column {error.colno})"
            if number == 1:
                detail += "; a data file holds one JSON object per line, or one JSON array"
            yield BadLine(SampleError(place, "invalid JSON", detail), offset)


def _array(path: Path, data: bytes, offset: int) -> Iterator[Record]:
    """Elements of a JSON array. Scanned one at a time, so that the line on which each starts is known."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 text: save the file as UTF-8") from error
    bytes_per_character = len(data) / len(text)
    decoder = json.JSONDecoder()
    position = _skip_space(text, text.index("[") + 1)
    closed = text.startswith("]", position)
    line, counted = 1, 0
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _syntax_error(path, text, error.pos, error.msg) from error
        yield Record(value, f"{path}:{line}", offset + int(position * bytes_per_character))
        position = _skip_space(text, position)
        if not text.startswith((",", "]"), position):
            raise _syntax_error(path, text, position, "expected ',' or ']' after an element of the array")
        closed = text[position] == "]"
        if not closed:
            position = _skip_space(text, position + 1)
    end = _skip_space(text, position + 1)
    if end < len(text):
        raise _syntax_error(path, text, end, "more text after the end of the array")


def _syntax_error(path: Path, text: str, position: int, what: str) -> DataError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return DataError(f"{path}:{line}: not valid JSON: {what} (column {column})")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position
