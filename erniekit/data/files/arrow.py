"""Parquet files, and Arrow files as `datasets` writes them (save_to_disk, its cache)."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from erniekit.data.files.records import Cursor, IsOwn, Passed, Record
from erniekit.errors import DataError

ARROW = b"ARROW1"  # begins the file format; the stream format has no mark
_ROWS = 128  # in memory as Python values at a time


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
    for batch in file.iter_batches(batch_size=_ROWS):
        done += len(batch)
        yield batch, size * done // file.metadata.num_rows


def _arrow_batches(path: Path) -> Iterator[tuple[Any, int]]:
    """(batch, bytes read up to its end)."""
    import pyarrow

    with pyarrow.OSFile(str(path)) as file:
        for batch in _stored_batches(file):
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

    number = 0
    try:
        for batch, bytes_read in batches:
            skipped = min(max(after.records - number, 0), len(batch))
            number += skipped
            for row in _own_rows(batch.slice(skipped), number, is_own):
                number += 1
                if row is None:
                    yield Passed(Cursor(number))
                else:
                    yield Record(plain(row), f"{path}:row {number}", bytes_read, Cursor(number))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        detail = " ".join(str(error).split())[:200]
        raise DataError(f"{path}:row {number + 1}: the {kind} file cannot be read: {detail}") from error


def _own_rows(batch: Any, first: int, is_own: IsOwn) -> Iterator[dict[str, Any] | None]:
    """The rows of an Arrow batch, None for those that are not one's own. first: the number of its first row."""
    own = [is_own(number) for number in range(first, first + len(batch))]
    if all(own):
        yield from batch.to_pylist(maps_as_pydicts="strict")
        return
    for place, wanted in enumerate(own):
        yield batch.slice(place, 1).to_pylist(maps_as_pydicts="strict")[0] if wanted else None


def plain(value: Any) -> Any:
    """A value of a table as JSON has it: bytes become base64 (with data: before it, unless under "bytes")."""
    if isinstance(value, dict):
        return {str(key): _bytes_field(key, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return "data:application/octet-stream;base64," + base64.b64encode(value).decode("ascii")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)  # dates, decimals and the like, which no format reads


def _bytes_field(key: Any, value: Any) -> Any:
    if key == "bytes" and isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return plain(value)
