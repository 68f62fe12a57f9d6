"""Which samples of data files to look at: the first ones, random ones, or one by its name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from erniekit.data.files.reader import BadLine, Record, read_records
from erniekit.data.files.reservoir import draw
from erniekit.errors import DataError
from erniekit.inspection.check import CheckedFile

Chosen = tuple[CheckedFile, Record | BadLine]
# What documents of a sample are called where it has several.
_MESSAGE = re.compile(r" \(message \d+\)$")
_NAMED = 3


def all_records(files: Sequence[CheckedFile]) -> Iterator[Chosen]:
    """The records of the files, in order. Raises DataError where a file cannot be read."""
    for file in files:
        for record in read_records(file.path, columns=file.columns):
            yield file, record


def first(files: Sequence[CheckedFile], count: int, skip: int = 0) -> list[Chosen]:
    """That many samples after the first `skip`. Raises DataError when there are none."""
    seen = 0
    found: list[Chosen] = []
    for chosen in all_records(files):
        seen += 1
        if seen > skip:
            found.append(chosen)
        if len(found) == count:
            break
    if not found:
        raise DataError(f"there are {seen:,} samples: none is left after the first {skip:,}")
    return found


def at_random(files: Sequence[CheckedFile], count: int, seed: int) -> list[Chosen]:
    """That many different samples, all equally likely, in the order of the files; the same for the same seed."""
    return draw(all_records(files), count, seed)


def named(files: Sequence[CheckedFile], name: str, format: str) -> Chosen:
    """The sample that errors call by that name, "file:line".

    format: where it is not a file of the run. Raises DataError when there is no such file or sample.
    """
    path, colon, place = _MESSAGE.sub("", name).rpartition(":")
    if not colon or not path:
        raise DataError(f"{name}: a sample is named file:line, as in chats.jsonl:12")
    file = _file(files, Path(path), format)
    places = []
    for record in read_records(file.path, columns=file.columns):
        sample_id = record.error.sample_id if isinstance(record, BadLine) else record.sample_id
        found = sample_id.rpartition(":")[2]
        if found == place:
            return file, record
        places.append(found)
    # The ones around a line that does not begin a sample, such as one inside an object of an array.
    near = sorted(places, key=lambda other: abs(_number(other) - _number(place)))[:_NAMED]
    raise DataError(f"{name}: no sample begins there; near it: {', '.join(sorted(near, key=_number))}")


def _file(files: Sequence[CheckedFile], path: Path, format: str) -> CheckedFile:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    for file in files:
        if file.path.resolve() == path.resolve():
            return file
    return CheckedFile(path, format)


def _number(place: str) -> int:
    digits = re.search(r"\d+$", place)
    return int(digits.group()) if digits else 0
