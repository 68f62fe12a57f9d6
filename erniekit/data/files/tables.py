"""Reads CSV and TSV files with a header."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from erniekit.data.chat.conversation import SampleError
from erniekit.data.files.records import (
    MAX_RECORD_BYTES,
    BadLine,
    Cursor,
    Record,
    Stream,
    bounded_lines,
    check_size,
)
from erniekit.data.formats import detect
from erniekit.data.formats.fields.columns import Columns
from erniekit.display.text import counted
from erniekit.errors import DataError
from erniekit.local_files import check_json_values

# Columns with lists and objects, which cells contain as JSON text.
_ANSWERS = ("chosen", "rejected", "rejected_response")
_JSON_COLUMNS = (
    *("messages", "conversations", "images", "videos", "objects", "tools", "history", *_ANSWERS),
    *("rejected_messages", "rejected_prompt", "rejected_images", "rejected_videos", "rejected_objects"),
)


def read_table(
    path: Path, stream: Stream, delimiter: str, after: Cursor, columns: Columns = ()
) -> Iterator[Record | BadLine]:
    """The rows of a table. The first line has the names of the columns.

    A row may span several lines; its sample id has the first. Cells of columns with lists and objects are parsed as
    JSON; empty ones are null. Raises DataError if the rows cannot be separated.
    """
    # The limit is global to the module. A cell may contain an image or a whole chat.
    csv.field_size_limit(MAX_RECORD_BYTES)
    lines = _Lines(path, stream, delimiter)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _next(path, rows, lines)
    if header is None:
        return
    names = {name: key for key, name in columns}
    _check_header(path, header, [names.get(name, name) for name in header])
    records = 0
    while True:
        number = rows.line_num + 1
        row = _next(path, rows, lines)
        if row is None:
            return
        if not row:
            continue
        records += 1
        if records <= after.records:
            continue
        place, cursor, read = f"{path}:{number}", Cursor(records), stream.bytes_read(lines.offset)
        if len(row) == len(header):
            cells = zip(header, row, strict=True)
            yield Record(
                {name: _cell(names.get(name, name), text) for name, text in cells}, place, read, cursor
            )
        else:
            detail = f"the row has {counted(len(row), 'cell')}, but the first line has {counted(len(header), 'column')}"
            yield BadLine(SampleError(place, "bad record", detail), read, cursor)


class _Lines:
    """The lines of a file as text, counted. Bounds each row: of quoted cells, it may have lines without end."""

    def __init__(self, path: Path, stream: Stream, delimiter: str) -> None:
        self.offset = 0
        self._row_bytes = self._row_cells = 0
        self._delimiter = delimiter.encode()
        self._number = 0
        self._path = path
        self._lines = bounded_lines(path, stream)

    def __iter__(self) -> _Lines:
        return self

    def begin_row(self) -> None:
        """The next line is the first one of a row."""
        self._row_bytes = self._row_cells = 0

    def __next__(self) -> str:
        line = next(self._lines)
        self.offset += len(line)
        self._number += 1
        self._row_bytes += len(line)
        self._row_cells += line.count(self._delimiter)
        check_size(f"{self._path}:{self._number}", self._row_bytes, self._row_cells)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            detail = "not UTF-8 text: save the file as UTF-8"
            raise DataError(f"{self._path}:{self._number}: {detail}") from error


def _next(path: Path, rows: Any, lines: _Lines) -> list[str] | None:
    lines.begin_row()
    try:
        row: list[str] | None = next(rows, None)
        return row
    except csv.Error as error:
        raise DataError(
            f"{path}:{rows.line_num}: cannot read the table: {error} (quotes must be closed)"
        ) from error


def _check_header(path: Path, header: list[str], keys: list[str]) -> None:
    """Raise DataError for a header that no format has. keys: the columns under the names of the formats."""
    if len(set(header)) < len(header):
        raise DataError(f"{path}:1: the first line names a column twice: {', '.join(header)}")
    if detect(dict.fromkeys(keys, "")) is None:
        found = ", ".join(header)[:200]
        detail = f"the first line must name the columns, as in instruction,input,output; it is: {found}"
        raise DataError(f"{path}:1: {detail}")


def _cell(name: str, text: str) -> Any:
    if name not in _JSON_COLUMNS:
        return text
    if not text:
        return None
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        check_json_values(text)
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # The text of an answer may happen to be JSON.
    return text if name in _ANSWERS and not _has_messages(value) else value


def _has_messages(value: Any) -> bool:
    entries = value if isinstance(value, list) else [value]
    return all(isinstance(entry, dict) and ("role" in entry or "from" in entry) for entry in entries)
