"""Arrow files, as `datasets` writes them (save_to_disk, its cache)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from erniekit.data.files.records import Cursor, IsOwn, Passed, Record
from erniekit.data.files.tables import own_rows, plain
from erniekit.errors import DataError

ARROW = b"ARROW1"  # begins the file format; the stream format has no mark
_ROWS = 128  # of a file as Python values at a time


def read_arrow(path: Path, after: Cursor, is_own: IsOwn) -> Iterator[Record | Passed]:
    """The rows of an Arrow file (stream or file format), named "file:row N" from 1; a batch in memory at a time."""
    import pyarrow

    number = 0
    try:
        with pyarrow.OSFile(str(path)) as file:
            for batch in _batches(file):
                for start in range(0, len(batch), _ROWS):
                    part = batch.slice(start, _ROWS)
                    skipped = min(max(after.records - number, 0), len(part))
                    number += skipped
                    for row in own_rows(part.slice(skipped), number, is_own):
                        number += 1
                        if row is None:
                            yield Passed(Cursor(number))
                        else:
                            yield Record(plain(row), f"{path}:row {number}", file.tell(), Cursor(number))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        detail = " ".join(str(error).split())[:200]
        raise DataError(f"{path}:row {number + 1}: the Arrow file cannot be read: {detail}") from error


def _batches(file: Any) -> Iterator[Any]:
    import pyarrow.ipc

    if file.read(len(ARROW)) == ARROW:
        reader = pyarrow.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
        return
    file.seek(0)
    yield from pyarrow.ipc.open_stream(file)
