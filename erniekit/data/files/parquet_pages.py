"""Reads the page headers of a Parquet file: readers allocate memory by them, and the footer may differ.

A page begins with a header in Thrift's compact protocol (https://github.com/apache/parquet-format): its kind, its size
in the file and in memory, and the number of values. Pages themselves are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BufferedReader
from typing import Any, TypeGuard

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
# Fields of a page header: kind, bytes in memory, bytes in the file; what follows by kind, and its encoding.
_KIND, _SIZE, _STORED = 1, 2, 3
_INNER = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
_ENCODING = {_DATA: 2, _DICTIONARY: 2, _DATA_V2: 4}
_PREFIXES, _INDICES = (7,), (2, 8)  # DELTA_BYTE_ARRAY; PLAIN_DICTIONARY, RLE_DICTIONARY
_HEADER_BYTES = 16 << 20  # as in Arrow
_MAX_DEPTH = 8
_MAX_FIELDS = 10_000
_MORE_THAN_HEADER = 1 << 16


@dataclass
class ColumnPages:
    """All pages of a column in a row group.

    values: number of values in data pages; indices, prefixed: the number of them that are indices into a dictionary, or
    share a prefix with the previous value. page, dictionary, prefixed_page: size of the largest one in memory, in
    bytes.
    """

    values: int = 0
    indices: int = 0
    prefixed: int = 0
    page: int = 0
    dictionary: int = 0
    prefixed_page: int = 0

    @property
    def most_bytes(self) -> int:
        """An upper bound of the bytes of the expanded values, in addition to the pages."""
        return self.indices * self.dictionary + self.prefixed * self.prefixed_page


def read_pages(file: BufferedReader, column: Any) -> ColumnPages:
    """Read the page headers of a column chunk. column: its metadata in pyarrow. Raises ValueError if one is damaged."""
    found = ColumnPages()
    place = int(column.data_page_offset)
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < place:
        place = int(column.dictionary_page_offset)
    end = place + int(column.total_compressed_size)
    while found.values < column.num_values and place < end:
        header, length = _read_header(file, place)
        kind: Any = header.get(_KIND)
        inner: Any = header.get(_INNER[kind]) if kind in _INNER else {1: 0}
        sizes = (header.get(_SIZE), header.get(_STORED), inner.get(1) if isinstance(inner, dict) else None)
        if not _are_sizes(sizes):
            raise ValueError(f"the header of the page at byte {place:,} is damaged")
        size, stored, values = sizes
        if kind == _DICTIONARY:
            found.dictionary = max(found.dictionary, size)
        elif kind in _INNER:
            found.values += values
            found.page = max(found.page, size)
            encoding = inner.get(_ENCODING[kind])
            if encoding in _INDICES:
                found.indices += values
            elif encoding in _PREFIXES:
                found.prefixed += values
                found.prefixed_page = max(found.prefixed_page, size)
        place += length + stored
    return found


def _are_sizes(values: tuple[Any, Any, Any]) -> TypeGuard[tuple[int, int, int]]:
    return all(type(value) is int and value >= 0 for value in values)


def _read_header(file: BufferedReader, place: int) -> tuple[dict[int, Any], int]:
    """The fields of the header at this byte, and its length."""
    length = _MORE_THAN_HEADER
    while True:
        file.seek(place)
        content = file.read(length)
        compact = _Compact(content)
        try:
            return compact.struct(0), compact.place
        except IndexError:
            if len(content) < length or length >= _HEADER_BYTES:
                raise ValueError(f"the header of the page at byte {place:,} is cut off") from None
            length *= 16


class _Compact:
    """Reads values of Thrift's compact protocol. Raises IndexError at the end of the bytes, ValueError."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.place = 0

    def struct(self, depth: int) -> dict[int, Any]:
        """Fields by number; None for fields of other types than numbers and structs."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            number = number + delta if delta else self._zigzag()
            if len(fields) > _MAX_FIELDS:
                raise ValueError("a page header has too many fields")
            # Booleans of a struct are in their type.
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("a page header is nested too deeply")
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            return self._skip_values([head & 15], count, depth)
        if kind == 11:
            count = self._varint()
            kinds = self._byte() if count else 0
            return self._skip_values([kinds >> 4, kinds & 15], count, depth)
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"a page header has a value of the unknown type {kind}")

    def _skip_values(self, kinds: list[int], count: int, depth: int) -> None:
        if count > _MAX_FIELDS:
            raise ValueError("a page header has too many values")
        for _ in range(count):
            for kind in kinds:
                self._value(kind, depth + 1)

    def _skip(self, length: int) -> None:
        self.place += length
        if self.place > len(self._content):
            raise IndexError

    def _byte(self) -> int:
        value = self._content[self.place]
        self.place += 1
        return value

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a page header has a number that is too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
