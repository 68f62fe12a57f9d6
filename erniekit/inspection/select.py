"""Selects samples of data files to show: the first ones, random ones, or one by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from erniekit.data.files.reader import BadLine, Record, read_records
from erniekit.data.files.reservoir import reservoir_sample
from erniekit.errors import DataError
from erniekit.inspection.check import CheckedFile

SelectedRecord = tuple[CheckedFile, Record | BadLine]
# The suffix that names one of several documents of a sample.
_MESSAGE = re.compile(r" \(message \d+\)$")
_NEAR = 3


def first_records(files: Sequence[CheckedFile], count: int, skip: int = 0) -> list[SelectedRecord]:
    """`count` records after the first `skip`. Raises DataError if there are none."""
    seen = 0
    found: list[SelectedRecord] = []
    for selected in _records(files):
        seen += 1
        if seen > skip:
            found.append(selected)
        if len(found) == count:
            break
    if not found:
        raise DataError(f"there are {seen:,} samples: none is left after the first {skip:,}")
    return found


def random_records(files: Sequence[CheckedFile], count: int, seed: int) -> list[SelectedRecord]:
    """`count` records of all files, all equally likely, in their order; the same for the same seed."""
    return reservoir_sample(_records(files), count, seed)


def named_record(files: Sequence[CheckedFile], name: str, format: str) -> SelectedRecord:
    """The record that errors name "file:line".

    format: of a file that is not one of `files`. Raises DataError if there is no such file or record.
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
    # The line may be inside a sample, such as an object of an array.
    near = sorted(places, key=lambda other: abs(_number(other) - _number(place)))[:_NEAR]
    raise DataError(f"{name}: no sample begins there; near it: {', '.join(sorted(near, key=_number))}")


def _records(files: Sequence[CheckedFile]) -> Iterator[SelectedRecord]:
    for file in files:
        for record in read_records(file.path, columns=file.columns):
            yield file, record


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
