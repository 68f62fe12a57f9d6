"""Reads and checks the header of a safetensors file.

A file is 8 bytes of length, a JSON header of that length, and data (https://huggingface.co/docs/safetensors). A header
is untrusted, so each value is checked: the ranges of the tensors must cover the data exactly, without overlaps,
gaps or bytes that belong to no tensor, and each must have the size of its shape and element type.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from erniekit.display.text import clipped
from erniekit.errors import CheckpointError
from erniekit.local_files import open_regular, parse_json, placeholder_problem

NUMPY_TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
METADATA = "__metadata__"
_HEADER_LIMIT = 100 << 20  # as in the safetensors library
_MAX_DIMENSIONS = 8
_MAX_BYTES = 1 << 50  # of a tensor


@dataclass(frozen=True)
class Columns:
    """Columns `first`, `first + step`, ... of a row-major matrix with `width` columns; transposed if `transposed`."""

    first: int
    width: int
    step: int = 1
    transposed: bool = True


@dataclass(frozen=True)
class TensorInfo:
    """The place of a tensor on disk. `offset` is in bytes from the start of `file`; `nbytes` is the tensor's own size.

    columns: the tensor is these columns of the matrix at `offset`; None: its values are contiguous. parts: the tensor
    is the concatenation of these along the first axis.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    columns: Columns | None = None
    parts: tuple[TensorInfo, ...] = ()


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Name -> place of the tensors of one safetensors file.

    Raises CheckpointError with the file and the tensor if the header is damaged, the file is cut off, or a Git LFS
    pointer.
    """
    header, start, size = _read(file)
    header.pop(METADATA, None)
    tensors = {name: _tensor(file, name, entry, start) for name, entry in header.items()}
    end, before = start, "the header"
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            what = "overlaps" if info.offset < end else "leaves a gap after"
            raise _damaged(file, f"{_shown(info.name)} {what} {before}")
        end, before = info.offset + info.nbytes, _shown(info.name)
        if end > size:
            raise CheckpointError(
                f"{file}: cut off: {_shown(info.name)} ends at byte {end:,} of {size:,}; download it again"
            )
    if end != size:
        raise _damaged(file, f"{size - end:,} bytes at its end belong to no tensor")
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata of one safetensors file. Raises CheckpointError."""
    header, _, _ = _read(file)
    metadata: dict[str, str] = header.get(METADATA, {})
    return metadata


def _read(file: Path) -> tuple[dict[str, Any], int, int]:
    """(header, start of the data, size of the file). Its metadata are checked, its tensors are not."""
    problem = placeholder_problem(file)
    if problem is not None:
        raise CheckpointError(f"{file}: {problem}")
    try:
        with open_regular(file) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise CheckpointError(
                    f"{file}: not a safetensors file, or cut off ({size:,} bytes); download it again"
                )
            content = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    try:
        header = parse_json(content)
    except ValueError as error:
        raise _damaged(file, str(error)) from None
    if not isinstance(header, dict):
        raise _damaged(file, "it is not a JSON object")
    metadata = header.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(file, f"{METADATA} must be an object of strings")
    return header, 8 + length, size


def _tensor(file: Path, name: str, entry: Any, start: int) -> TensorInfo:
    """One entry of a header; data begin at `start`."""
    shown = _shown(name)
    if not isinstance(entry, dict):
        raise _damaged(file, f"the entry of {shown} is not an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in NUMPY_TYPES:
        raise CheckpointError(f"{file}: {shown} has the element type {_shown(dtype)}, which is not supported")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _damaged(file, f"{shown} has the shape {_shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(file, f"{shown} has the data_offsets {_shown(offsets)}")
    width = np.dtype(NUMPY_TYPES[dtype]).itemsize
    begin, end = offsets
    # Without zeros: a shape such as [0, 2^60] has no bytes, but cannot be the shape of an array.
    if math.prod(side for side in shape if side) * width > _MAX_BYTES:
        raise _damaged(file, f"{shown} has the shape {_shown(shape)}")
    if end - begin != math.prod(shape) * width:
        raise _damaged(
            file,
            f"{shown} is {dtype} {_shown(shape)}, {math.prod(shape) * width:,} bytes, and its data_offsets give "
            f"{end - begin:,}",
        )
    return TensorInfo(name, dtype, tuple(shape), file, start + begin, end - begin)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of whole numbers in the range of shapes and offsets."""
    return isinstance(value, list) and all(type(each) is int and 0 <= each <= _MAX_BYTES for each in value)


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file}: its safetensors header is damaged: {what}; download it again")


def _shown(value: Any) -> str:
    return clipped(value if isinstance(value, str) else json.dumps(value))
