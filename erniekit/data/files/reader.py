"""Reads the records of a data file one by one, each with its first line."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from erniekit.data.chat.conversation import SampleError
from erniekit.data.files.arrow import ARROW, read_arrow, read_parquet
from erniekit.data.files.json_values import read_array, read_objects
from erniekit.data.files.records import (
    BadLine,
    Cursor,
    IsOwn,
    Passed,
    Record,
    Stream,
    bounded_lines,
    check_values,
)
from erniekit.data.files.tables import read_table
from erniekit.data.formats.fields.columns import Columns, renamed
from erniekit.errors import DataError
from erniekit.local_files import open_regular, placeholder_problem

__all__ = ["BadLine", "Cursor", "Passed", "Record", "read_records", "read_share"]

_HEAD = 1 << 16  # bytes to read for detecting the kind of a file
MAX_TEXT_BYTES = 1 << 30
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_START = Cursor()


def read_records(path: Path, after: Cursor = _START, columns: Columns = ()) -> Iterator[Record | BadLine]:
    """The records of a file in order, starting after the cursor of an earlier record.

    columns: the file's names for keys of its format, which are renamed in the records; see `columns.renamed`.

    Reads JSON lines, one JSON array, or a sequence of objects that span several lines, whatever the file's suffix;
    Parquet; Arrow (.arrow); tables with a header (.csv, .tsv); and .txt as one record, {"text": its content}. Text is
    UTF-8, with or without a byte order mark, optionally compressed with gzip. Only .txt is read into memory as a whole.
    An invalid line of JSON lines or row of a table is returned as a BadLine. Raises DataError if the file cannot be
    read, has no records, or has an error after which reading cannot continue.
    """
    for record in read_share(path, after, _every, columns):
        assert not isinstance(record, Passed)
        yield record


def read_share(
    path: Path, after: Cursor, is_own: IsOwn, columns: Columns = ()
) -> Iterator[Record | BadLine | Passed]:
    """`read_records` with a Passed for each record of another process. Most kinds of files are not parsed there.

    Raises DataError as `read_records` does.
    """
    problem = placeholder_problem(path)
    if problem is not None:
        raise DataError(f"{path}: {problem}")
    empty = True
    try:
        with open_regular(path) as raw:
            magic = raw.read(len(_PARQUET))
            raw.seek(0)
            if magic == _PARQUET or path.suffix.lower() == ".parquet":
                records: Iterator[Record | BadLine | Passed] = read_parquet(path, after, is_own)
            elif path.suffix.lower() == ".arrow" or magic == ARROW[: len(_PARQUET)]:
                records = read_arrow(path, after, is_own)
            else:
                file = gzip.GzipFile(fileobj=raw) if magic.startswith(_GZIP) else raw
                records = _read_text(path, Stream(raw, file), after, is_own, columns)
            for record in records:
                empty = False
                is_wanted = isinstance(record, Passed) or is_own(record.after.records - 1)
                yield _renamed(record, columns) if is_wanted else Passed(record.after)
    except OSError as error:
        raise DataError(f"{path}: cannot read the data file: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged or cut off: {error}") from error
    if empty and not after.records:
        raise DataError(f"{path}: the data file has no samples; {_EXPECTED}")


_EXPECTED = "expected JSON lines, one JSON array, parquet, a table (.csv, .tsv) or text (.txt)"


def _renamed(record: Record | BadLine | Passed, columns: Columns) -> Record | BadLine | Passed:
    if not columns or not isinstance(record, Record):
        return record
    try:
        return replace(record, value=renamed(record.value, columns, record.sample_id))
    except SampleError as error:
        return BadLine(error, record.bytes_read, record.after)


def _every(number: int) -> bool:
    return True


def _read_text(
    path: Path, stream: Stream, after: Cursor, is_own: IsOwn, columns: Columns
) -> Iterator[Record | BadLine | Passed]:
    head = stream.file.read(_HEAD)
    _refuse_other_encodings(path, head)
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    first = head[start:].lstrip()[:1]
    stream.file.seek(start)
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix == ".txt":
        return _whole(path, stream, after)
    if suffix in _DELIMITERS:
        return read_table(path, stream, _DELIMITERS[suffix], after, columns)
    if first == b"[":
        return read_array(path, stream, after)
    if first == b"{" and not _is_json(path, next(bounded_lines(path, stream), b"")):
        stream.file.seek(start)
        objects = read_objects(path, stream, after)
        if objects is not None:
            return objects
    return _lines(path, stream, after if after.records else Cursor(offset=start), is_own)


def _is_json(path: Path, line: bytes) -> bool:
    check_values(f"{path}:1", line)
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_other_encodings(path: Path, head: bytes) -> None:
    """Raise DataError for UTF-16, and for zero bytes, which UTF-8 text does not have and most binary files have."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}:1: the file is in UTF-16: save it as UTF-8")
    if b"\0" in head:
        raise DataError(f"{path}:1: not UTF-8 text (it has zero bytes): save the file as UTF-8; {_EXPECTED}")


def _whole(path: Path, stream: Stream, after: Cursor) -> Iterator[Record]:
    if after.records:
        return
    data = bytearray()
    while piece := stream.file.read(_HEAD):  # read(limit) would allocate the limit
        data += piece
        if len(data) > MAX_TEXT_BYTES:
            limit = f"{MAX_TEXT_BYTES >> 20} MiB, the limit for one text"
            raise DataError(f"{path}: has more than {limit}: split it into several files, or use JSON lines")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 text: save the file as UTF-8") from error
    if text.strip():
        yield Record({"text": text}, f"{path}:1", stream.bytes_read(len(data)), Cursor(records=1))


def _lines(path: Path, stream: Stream, after: Cursor, is_own: IsOwn) -> Iterator[Record | BadLine | Passed]:
    records, offset = after.records, after.offset
    stream.file.seek(offset)
    for number, line in enumerate(bounded_lines(path, stream, after.line), after.line + 1):
        offset += len(line)
        if not line.strip():
            continue
        records += 1
        place = f"{path}:{number}"
        cursor = Cursor(records, offset, number)
        if not is_own(records - 1):
            yield Passed(cursor)
            continue
        check_values(place, line)
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            bad = SampleError(place, "invalid JSON", _what_is_wrong(error, number))
            yield BadLine(bad, stream.bytes_read(offset), cursor)
        else:
            yield Record(value, place, stream.bytes_read(offset), cursor)


def _what_is_wrong(error: ValueError | RecursionError, number: int) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text (byte {error.start + 1} of the line): save the file as UTF-8"
    if isinstance(error, json.JSONDecodeError):
        hint = "; a data file holds one JSON object per line, or one JSON array" if number == 1 else ""
        return f"not valid JSON: {error.msg} (column {error.colno}){hint}"
    if isinstance(error, RecursionError):
        return "JSON that is nested too deeply to be read"
    return f"not valid JSON: {error}"  # a number with thousands of digits
