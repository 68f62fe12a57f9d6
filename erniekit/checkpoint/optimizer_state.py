"""The optimizer's state in a checkpoint: one file per process, with whole tensors or with parts of them.

A part is the elements `start` to `stop` of a tensor in row-major order, 1-D, under the name `NAME[start:stop]`. So a
process writes the shard that it holds as it is, and a run with other parallel degrees reads the elements it needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from erniekit.checkpoint.hub import TensorInfo, read_header, read_span
from erniekit.errors import CheckpointError

_PART = re.compile(r"(.+)\[(\d+):(\d+)\]")


def optimizer_file(rank: int, world: int) -> str:
    """The file of one of `world` processes."""
    return f"optimizer-{rank + 1:05d}-of-{world:05d}.safetensors"


def part_name(name: str, start: int, stop: int) -> str:
    """The name of a part of a tensor."""
    return f"{name}[{start}:{stop}]"


class OptimizerState:
    """The optimizer's state in a checkpoint. Raises CheckpointError if a file is damaged or parts are missing."""

    def __init__(self, checkpoint: Path) -> None:
        self._where = checkpoint
        self._parts: dict[str, list[tuple[int, TensorInfo]]] = {}
        for file in sorted(checkpoint.glob("optimizer*.safetensors")):
            for stored, info in read_header(file).items():
                match = _PART.fullmatch(stored)
                name, start = (match[1], int(match[2])) if match else (stored, 0)
                self._parts.setdefault(name, []).append((start, info))
        for name, parts in self._parts.items():
            parts.sort(key=lambda part: part[0])
            end = 0
            for start, info in parts:
                if start != end:
                    raise CheckpointError(
                        f"{checkpoint}: optimizer state {name}: elements {end} to {start} are missing"
                    )
                end += int(np.prod(info.shape, dtype=np.int64))

    @property
    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        return self._parts.keys()

    def read(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> tuple[np.ndarray, str]:
        """Elements `start` to `stop` of a tensor of this shape, 1-D, and their element type.

        Raises CheckpointError for a tensor of another shape, and for elements that are missing.
        """
        parts = self._parts[name]
        size = sum(int(np.prod(info.shape, dtype=np.int64)) for _, info in parts)
        whole = parts[0][1].shape if len(parts) == 1 and not _PART.fullmatch(parts[0][1].name) else None
        if size != int(np.prod(shape, dtype=np.int64)) or whole not in (None, shape):
            found = f"{size} elements" if whole is None else f"shape {list(whole)}"
            raise CheckpointError(
                f"{self._where}: optimizer state {name}: {found}, expected shape {list(shape)}"
            )
        spans = []
        for first, info in parts:
            length = int(np.prod(info.shape, dtype=np.int64))
            begin, end = max(start - first, 0), min(stop - first, length)
            if begin < end:
                spans.append(read_span(info, begin, end))
        return (spans[0] if len(spans) == 1 else np.concatenate(spans)), parts[0][1].dtype
