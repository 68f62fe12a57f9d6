"""Comparison of a model directory with its base model: names, shapes, element types, and the place of each weight.

Fine-tuning does not turn a weight into another weight of the base model. A tensor that is nearer to another tensor of
the base model than to the one of its name was written to the wrong place: experts in another order, gate and up
exchanged, layers exchanged, a square matrix transposed. Two engines that read such a directory agree with each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.hub import TensorInfo, read_array, read_span
from erniekit.checkpoint.model_files import check_tensors, model_index
from erniekit.errors import CheckpointError
from erniekit.export.check import Check, some
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import is_router_tensor, parameter_specs

# Rows and columns of the corner of a matrix that stands for it.
_CORNER = 32
# A weight is misplaced if it is this far from its own place (relative, by norms), and half as far or less from another.
_MOVED = 0.1

Tensors = Mapping[str, TensorInfo]


def check_base(tensors: Tensors, base: Path, config: ErnieConfig) -> Iterator[Check]:
    """Compare the tensors of a directory with those of its base model. Reads a corner of each matrix, and routers."""
    specs = parameter_specs(config)
    try:
        rows = ErnieConfig.from_dir(base).vocab_size
        before = replace(config, vocab_size=rows)
        theirs = model_index(base, before)
        check_tensors(theirs, before, f"{base} (the base model)")
    except CheckpointError as error:
        yield Check("FAIL", str(error))
        return
    common = [spec.name for spec in specs if spec.name in tensors]
    differing = {
        name: f"{name} ({tensors[name].dtype}, base {theirs[name].dtype})"
        for name in common
        if tensors[name].dtype != theirs[name].dtype and not is_router_tensor(name)
    }
    if differing:
        # float32 holds the values of every other type.
        wider = all(tensors[name].dtype == "F32" for name in differing)
        yield Check(
            "note" if wider else "FAIL",
            f"{len(differing)} tensors have a different element type in the base model: "
            f"{some(list(differing.values()))}",
        )
    else:
        grown = (
            f", except for {config.vocab_size - rows:+,} rows of the vocabulary"
            if config.vocab_size != rows
            else ""
        )
        yield Check("ok", f"names, shapes and element types equal those of the base model {base}{grown}")
    same = {
        name: (tensors[name], theirs[name]) for name in common if tensors[name].shape == theirs[name].shape
    }
    misplaced = [*_misplaced_tensors(same), *_wrong_routers(same)]
    if misplaced:
        yield Check(
            "FAIL", f"{len(misplaced)} tensors have values of another place of the base: {some(misplaced)}"
        )
    else:
        yield Check("ok", f"each weight is nearest to the weight of the same name in the base model {base}")


def _misplaced_tensors(pairs: Mapping[str, tuple[TensorInfo, TensorInfo]]) -> Iterator[str]:
    """Tensors that are nearer to another tensor of their shape in the base model, or to their transposed one."""
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, (own, _) in pairs.items():
        if len(own.shape) > 1:
            groups[own.shape].append(name)
    for shape, names in groups.items():
        corners, base = (np.stack([_corner(pairs[name][side]) for name in names]) for side in (0, 1))
        if shape == shape[::-1]:
            base = np.concatenate([base, base.swapaxes(1, 2)])
        for place, found in _nearer_elsewhere(corners.reshape(len(corners), -1), base.reshape(len(base), -1)):
            transposed = found >= len(names)
            yield f"{names[place]} is {names[found % len(names)]}{' transposed' if transposed else ''}"


def _wrong_routers(pairs: Mapping[str, tuple[TensorInfo, TensorInfo]]) -> Iterator[str]:
    """Routers with experts in another order, and correction biases that are lost or have their rows exchanged."""
    for name, infos in pairs.items():
        if not is_router_tensor(name):
            continue
        own, base = (as_dtype(read_array(info), info.dtype, "F32") for info in infos)
        if base.any() and not own.any():
            yield f"{name} is all zeros"
        elif name.endswith("e_score_correction_bias"):
            yield from (
                f"{name}, row {place} is row {found}" for place, found in _nearer_elsewhere(own, base)
            )
        else:
            # Text models have a row for each expert, vision-language models a column; hidden sizes are larger.
            by_expert = (own, base) if own.shape[0] < own.shape[1] else (own.T, base.T)
            moved = list(_nearer_elsewhere(*by_expert))
            if moved:
                yield f"{name}, expert {moved[0][0]} is expert {moved[0][1]}"


def _nearer_elsewhere(own: np.ndarray, base: np.ndarray) -> Iterator[tuple[int, int]]:
    """(row, row of base) for rows [N, size] that are far from that row of base [M, size], M >= N, and near another."""
    own, base = own.astype(np.float64), base.astype(np.float64)
    squares = np.square(base).sum(1)
    floor = np.finfo(np.float32).tiny
    for place, row in enumerate(own):
        norm = max(squares[place], floor)
        distance = np.maximum(np.square(row).sum() + squares - 2 * (base @ row), 0) / norm
        nearest = int(distance.argmin())
        if distance[place] > _MOVED**2 and distance[nearest] <= distance[place] / 4:
            yield place, nearest


def _corner(info: TensorInfo) -> np.ndarray:
    """The first rows and columns of a matrix, float32."""
    rows, columns = info.shape[0], int(np.prod(info.shape[1:]))
    spans = [
        as_dtype(read_span(info, row * columns, row * columns + min(columns, _CORNER)), info.dtype, "F32")
        for row in range(min(rows, _CORNER))
    ]
    return np.stack(spans)
