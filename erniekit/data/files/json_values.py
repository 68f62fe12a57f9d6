"""Reads JSON that spans several lines, value by value with a sliding window, so that files may exceed the memory.

The file is one array of records, or a sequence of objects that each span several lines.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from erniekit.data.files.records import MAX_RECORD_BYTES, Cursor, Record, Stream, check_values, too_large
from erniekit.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")
_CHUNK = 1 << 20  # bytes
# An error within this many characters of the window's end may be caused by a cut literal, number or escape.
_CUT = 16
_DECODER = json.JSONDecoder()


def read_array(path: Path, stream: Stream, after: Cursor) -> Iterator[Record]:
    """The elements of an array, each with its first line. Raises DataError for a syntax error."""
    window = _Window(path, stream)
    window.skip_space()
    window.position += 1  # the bracket that makes this an array
    window.skip_space()
    closed = window.character() == "]"
    number = 0
    while not closed:
        number += 1
        record = window.record(number)
        if number > after.records:
            yield record
        window.skip_space()
        if window.character() not in (",", "]"):
            raise window.syntax_error(window.position, "expected ',' or ']' after an element of the array")
        closed = window.character() == "]"
        if not closed:
            window.position += 1
            window.skip_space()
    window.position += 1
    window.skip_space()
    if window.character():
        raise window.syntax_error(window.position, "more text after the end of the array")


def read_objects(path: Path, stream: Stream, after: Cursor) -> Iterator[Record] | None:
    """The objects of a sequence, each with its first line.

    None if the first object is invalid or is on a single line, since the file may then be JSON lines. Iterating raises
    DataError for a syntax error.
    """
    window = _Window(path, stream)
    window.skip_space()
    first_line, _ = window.place(window.position)
    try:
        first = window.record(1)
    except DataError:
        return None
    last_line, _ = window.place(window.position)
    return _objects(window, first, after) if last_line > first_line else None


def _objects(window: _Window, record: Record, after: Cursor) -> Iterator[Record]:
    number = 1
    while True:
        if number > after.records:
            yield record
        window.skip_space()
        if not window.character():
            return
        number += 1
        record = window.record(number)


class _Window:
    """The part of a file's text that is being parsed. Text before `position` may be dropped."""

    def __init__(self, path: Path, stream: Stream) -> None:
        self.position = 0
        self._path = path
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._fed = 0  # bytes
        self._ended = False
        # A character at or before `position` with its line and column, to count from.
        self._mark, self._line, self._column = 0, 1, 1

    def character(self) -> str:
        """The character at `position`; empty at the end of the file. Call `skip_space` first."""
        return self._text[self.position : self.position + 1]

    def skip_space(self) -> None:
        passed = 0
        while True:
            end = _SPACE.match(self._text, self.position).end()  # type: ignore[union-attr] # always matches
            passed, self.position = passed + end - self.position, end
            if passed > MAX_RECORD_BYTES:
                line, _ = self.place(self.position)
                raise DataError(f"{self._path}:{line}: {passed:,} spaces in a row: the file is damaged")
            if self.position < len(self._text) or not self._more():
                return

    def record(self, number: int) -> Record:
        """The JSON value at `position` as a record. Moves `position` behind it."""
        line, _ = self.place(self.position)
        value = self._value()
        return Record(value, f"{self._path}:{line}", self._bytes_read(), Cursor(number))

    def _value(self) -> Any:
        """The JSON value at `position`. Moves `position` behind it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self.position)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT
                if cut and self._more():
                    continue
                raise self.syntax_error(error.pos, error.msg) from error
            except RecursionError as error:
                raise self.syntax_error(self.position, "nested too deeply to be read") from error
            except ValueError as error:  # a number with thousands of digits
                raise self.syntax_error(self.position, str(error)) from error
            if end >= len(self._text) - _CUT and self._more():
                continue  # a number may continue behind the window
            self.position = end
            return value

    def place(self, position: int) -> tuple[int, int]:
        """(line, column) of a character, counted from 1. Positions must not decrease from call to call."""
        lines = self._text.count("\n", self._mark, position)
        if lines:
            self._line += lines
            self._column = position - self._text.rfind("\n", self._mark, position)
        else:
            self._column += position - self._mark
        self._mark = position
        return self._line, self._column

    def _bytes_read(self) -> int:
        """The offset of `position` in the file; exact for ASCII, otherwise slightly too large."""
        return self._stream.bytes_read(self._fed - (len(self._text) - self.position))

    def syntax_error(self, position: int, what: str) -> DataError:
        line, column = self.place(position)
        return DataError(f"{self._path}:{line}: not valid JSON: {what} (column {column})")

    def _more(self) -> bool:
        """Read more text, as much as the window has, so that a large element is parsed only a few times.

        False at the end of the file.
        """
        if self._ended:
            return False
        line, _ = self.place(self.position)
        if len(self._text) - self.position > MAX_RECORD_BYTES:
            raise too_large(f"{self._path}:{line}")
        self._text, self.position, self._mark = self._text[self.position :], 0, 0
        data = self._stream.file.read(max(_CHUNK, len(self._text)))
        self._fed += len(data)
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = self.place(len(self._text))[0] + error.object.count(b"\n", 0, error.start)
            raise DataError(f"{self._path}:{line}: not UTF-8 text: save the file as UTF-8") from error
        check_values(f"{self._path}:{line}", self._text)
        return True
