"""Reads Parquet files, and Arrow files as `datasets` writes them (save_to_disk and its cache)."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from erniekit.data.files.parquet_pages import ColumnPages, read_pages
from erniekit.data.files.records import MAX_EMPTY_LINES, MAX_RECORD_BYTES, Cursor, IsOwn, Passed, Record
from erniekit.errors import DataError

ARROW = b"ARROW1"  # magic number of the file format; the stream format has none
_ROWS = 128  # rows converted to Python values at a time
# Limits of memory: a small file may repeat a text or a list billions of times.
_BATCH_BYTES = 1 << 30
_MAX_PAGE_BYTES = 4 << 30  # sum over the columns of a row group, for one page and one dictionary of each
_SMALL_BYTES, _SMALL_VALUES = 64 << 20, 1_000_000
_MAX_ROW_VALUES = 4_000_000
_MAX_GROUP_VALUES = 200_000_000  # of a column; row groups usually have up to a million rows


def read_parquet(path: Path, after: Cursor, is_own: IsOwn) -> Iterator[Record | Passed]:
    """The rows of a parquet file, named "file:row N" from 1, a batch of them in memory at a time."""
    return _records(path, "parquet", _parquet_batches(path), after, is_own)


def read_arrow(path: Path, after: Cursor, is_own: IsOwn) -> Iterator[Record | Passed]:
    """The rows of an Arrow file (stream or file format), named "file:row N" from 1, a batch in memory at a time."""
    return _records(path, "Arrow", _arrow_batches(path), after, is_own)


def _parquet_batches(path: Path) -> Iterator[tuple[Any, int]]:
    """(batch, bytes read up to its end)."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    size, done = path.stat().st_size, 0
    for number in range(file.num_row_groups):
        # Open the readers of all columns without reading a row: for damaged metadata, this raises an exception, while
        # reading the metadata would abort the process.
        list(file.reader.iter_batches(0, [number], column_indices=None, use_threads=False))
        group = file.metadata.row_group(number)
        columns = [group.column(index) for index in range(group.num_columns)]
        with path.open("rb") as stream:
            pages = [read_pages(stream, column) for column in columns]
        rows = _batch_rows(group.num_rows, pages)
        texts = [
            column.path_in_schema
            for index, (column, found) in enumerate(zip(columns, pages, strict=True))
            if file.metadata.schema.column(index).max_repetition_level and found.most_bytes > _MAX_PAGE_BYTES
        ]
        # Read lists that may repeat long texts as indices, so that their size is known before they are expanded.
        source = file if not texts else pyarrow.parquet.ParquetFile(path, read_dictionary=texts)
        for batch in source.iter_batches(batch_size=rows, row_groups=[number]):
            done += len(batch)
            yield batch, size * done // max(file.metadata.num_rows, done)


def _batch_rows(num_rows: int, pages: Sequence[ColumnPages]) -> int:
    """The number of rows of a row group to read at a time. Raises ValueError if the group needs too much memory.

    Uses the sizes in the page headers, since memory is allocated by them; the footer may differ. A row may repeat the
    whole dictionary of a column, or a whole page of texts with shared prefixes.
    """
    values = max((found.values for found in pages), default=0)
    if values > min(_MAX_GROUP_VALUES, _MAX_ROW_VALUES * max(num_rows, 1)):
        raise ValueError(f"a row group of {num_rows:,} rows has {values:,} values in a column")
    needed = sum(found.page + found.dictionary for found in pages)
    if needed > _MAX_PAGE_BYTES:
        raise ValueError(f"the pages of a row group need {needed:,} bytes at a time")
    repeated = sum(found.dictionary + found.prefixed_page for found in pages)
    return max(1, min(_ROWS, _BATCH_BYTES // max(repeated, 1)))


def _arrow_batches(path: Path) -> Iterator[tuple[Any, int]]:
    """(batch, bytes read up to its end)."""
    import pyarrow

    with pyarrow.OSFile(str(path)) as file:
        for batch in _stored_batches(file):
            batch.validate(full=True)  # an offset beyond its buffer would be followed
            for start in range(0, len(batch), _ROWS):
                yield batch.slice(start, _ROWS), file.tell()


def _stored_batches(file: Any) -> Iterator[Any]:
    import pyarrow.ipc

    if file.read(len(ARROW)) == ARROW:
        reader = pyarrow.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
        return
    file.seek(0)
    yield from pyarrow.ipc.open_stream(file)


def _records(
    path: Path, kind: str, batches: Iterable[tuple[Any, int]], after: Cursor, is_own: IsOwn
) -> Iterator[Record | Passed]:
    import pyarrow

    number = empty = 0
    try:
        for batch, bytes_read in batches:
            if len(set(batch.schema.names)) < len(batch.schema.names):
                raise ValueError("two columns have the same name")
            skipped = min(max(after.records - number, 0), len(batch))
            number += skipped
            for row in _own_rows(batch.slice(skipped), number, is_own):
                number += 1
                if row is None:
                    yield Passed(Cursor(number))
                else:
                    empty = 0 if any(value is not None for value in row.values()) else empty + 1
                    if empty > MAX_EMPTY_LINES:
                        raise ValueError(f"{MAX_EMPTY_LINES:,} rows without a value in a row")
                    yield Record(plain(row), f"{path}:row {number}", bytes_read, Cursor(number))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        detail = " ".join(str(error).split())[:200]
        raise DataError(f"{path}:row {number + 1}: the {kind} file cannot be read: {detail}") from error


def _own_rows(batch: Any, first: int, is_own: IsOwn) -> Iterator[dict[str, Any] | None]:
    """The rows of an Arrow batch, None for rows of other processes. first: the number of the first row."""
    own = [is_own(number) for number in range(first, first + len(batch))]
    size, values = _size_of(batch.to_struct_array())
    is_large = size > _SMALL_BYTES or values > _SMALL_VALUES
    if all(own) and not is_large:
        yield from batch.to_pylist(maps_as_pydicts="strict")
        return
    for place, wanted in enumerate(own):
        row = batch.slice(place, 1)
        if wanted and is_large:
            size, values = _size_of(row.to_struct_array())
            if size > MAX_RECORD_BYTES or values > _MAX_ROW_VALUES:
                raise ValueError(f"the row has {size:,} bytes and {values:,} values, which is too much")
        yield row.to_pylist(maps_as_pydicts="strict")[0] if wanted else None


def _size_of(array: Any) -> tuple[int, int]:
    """(bytes, values) of an Arrow array as Python values; an upper bound if rows may share values."""
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind):
        return _repeated_bytes(array), len(array)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return len(array) * array.nbytes, len(array)
    if types.is_run_end_encoded(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        size, values = _size_of(array.values)
        return len(array) * size, len(array) * (1 + values)
    if types.is_map(kind):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        parts = [_size_of(part.slice(first, last - first)) for part in (array.keys, array.items)]
        return sum(size for size, _ in parts), len(array) + sum(values for _, values in parts)
    if types.is_nested(kind) and not types.is_union(kind):
        inner = array.flatten()
        parts = [_size_of(part) for part in (inner if types.is_struct(kind) else [inner])]
        return sum(size for size, _ in parts), len(array) + sum(values for _, values in parts)
    return array.nbytes, len(array)


def _repeated_bytes(array: Any) -> int:
    """Bytes of a dictionary array as Python values; exact for texts."""
    from pyarrow import compute, types

    kind = array.type.value_type
    is_text = types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind)
    if not is_text:
        return len(array) * int(array.dictionary.nbytes)
    lengths = compute.binary_length(array.dictionary).take(array.indices)
    return 8 * len(array) + int(compute.sum(lengths.cast("int64")).as_py() or 0)


def plain(value: Any) -> Any:
    """A value of a table as a JSON value: bytes become a base64 data: URI, or plain base64 under the key "bytes"."""
    if isinstance(value, dict):
        return {str(key): _bytes_field(key, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return "data:application/octet-stream;base64," + base64.b64encode(value).decode("ascii")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)  # such as dates and decimals, which no format reads


def _bytes_field(key: Any, value: Any) -> Any:
    if key == "bytes" and isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return plain(value)
