"""Saves the rows of a step, so that `erniekit replay` can compute them again.

Each process writes its rows to a directory such as RUN/nonfinite/step-000012: `rows-0.safetensors` has the arrays, and
`rows-0.json` the samples of each row with file and line, lengths and images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from erniekit.data.encode.document import IGNORE
from erniekit.data.load.batch import PackedBatch
from erniekit.errors import CheckpointError, DataError
from erniekit.local_files import read_json_object

_ARRAYS = tuple(
    field.name for field in fields(PackedBatch) if field.name not in ("sample_ids", "media_names")
)
_OPTIONAL = "reference"


@dataclass(frozen=True)
class SavedRows:
    """Rows of one step.

    step: number of the step, from 1; reason: the reason for saving its rows.
    """

    step: int
    reason: str
    rows: Sequence[PackedBatch]


def step_directory(parent: Path, step: int) -> Path:
    """The directory for the rows of a step."""
    return parent / f"step-{step:06d}"


def save_rows(directory: Path, saved: SavedRows, losses: Sequence[float], rank: int = 0) -> None:
    """Write the rows of one process, and the loss sum of each. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{number}.{name}": np.ascontiguousarray(array)
        for number, row in enumerate(saved.rows)
        for name in _ARRAYS
        if (array := getattr(row, name)) is not None
    }
    rows = [
        {"loss_sum": loss if math.isfinite(loss) else str(loss), "samples": _samples(row)}
        for row, loss in zip(saved.rows, losses, strict=True)
    ]
    described = {"step": saved.step, "reason": saved.reason, "rows": rows}
    try:
        save_file(arrays, directory / f"rows-{rank}.safetensors")
    except SafetensorError as error:
        raise OSError(str(error)) from None
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    (directory / f"rows-{rank}.json").write_text(text, encoding="utf-8")


def load_rows(directory: Path) -> SavedRows:
    """The rows of all processes. Raises DataError for a directory without rows, and for damaged ones."""
    files = sorted(directory.glob("rows-*.json"))
    if not files:
        raise DataError(
            f"{directory}: no saved rows; give a directory such as RUN/nonfinite/step-000012, which a run writes where "
            "a loss or gradient is not finite"
        )
    rows: list[PackedBatch] = []
    for file in files:
        try:
            described = read_json_object(file)
            arrays = load_file(file.with_suffix(".safetensors"))
            step, reason = int(described["step"]), str(described["reason"])
            found = [_row(arrays, number, row["samples"]) for number, row in enumerate(described["rows"])]
            # Processes that share a row (context parallelism) each save it.
            known = {row.sample_ids for row in rows}
            rows += [row for row in found if row.sample_ids not in known]
        except (CheckpointError, OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: the saved rows cannot be read: {error}") from None
    return SavedRows(step, reason, rows)


def _samples(row: PackedBatch) -> list[dict[str, Any]]:
    found = []
    for name, media, (start, stop) in zip(
        row.sample_ids, row.media_names, pairwise(row.cu_seqlens.tolist()), strict=True
    ):
        trained = int(np.count_nonzero(row.labels[start:stop] != IGNORE))
        found.append({"id": name, "tokens": stop - start, "trained_tokens": trained, "media": list(media)})
    return found


def _row(arrays: dict[str, np.ndarray], number: int, samples: list[dict[str, Any]]) -> PackedBatch:
    found = {name: arrays[f"{number}.{name}"] for name in _ARRAYS if name != _OPTIONAL}
    length, bounds = len(found["input_ids"]), found["cu_seqlens"].tolist()
    lengths = [sample["tokens"] for sample in samples]
    if lengths != np.diff(bounds).tolist() or [bounds[0], bounds[-1]] != [0, length]:
        raise ValueError(f"the samples of row {number} and its arrays differ in length")
    return PackedBatch(
        **found,
        reference=arrays.get(f"{number}.{_OPTIONAL}"),
        sample_ids=tuple(str(sample["id"]) for sample in samples),
        media_names=tuple(tuple(sample["media"]) for sample in samples),
    )
