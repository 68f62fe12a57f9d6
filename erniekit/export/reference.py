"""Comparison of Paddle's logits, loss and gradients with stored ones of another implementation.

A reference is an `.npz` with a batch of inputs, under the argument names of transformers' models, and the results:

    in_input_ids, in_attention_mask    int [B, T]
    in_pixel_values, in_image_grid_thw, in_pixel_values_videos, in_video_grid_thw
                                       float32 [P, patch_dim] normalised patches, int [N, 3] (VL models)
    in_mm_token_type_ids, in_moe_mm_token_type_ids
                                       int [B, T]: 0 text, 1 image, 2 video; the second includes markers
    position_ids_thw                   int [3, B, T]; if absent, computed as in training. Required if transformers
                                       computed the reference for a video with more token times than rows and
                                       columns, see `erniekit.data.encode.positions`
    labels                             int [B, T], not shifted, -100 = none
    logits                             float32 [B, T, vocab]
    loss                               mean over all labels that a position predicts
    grad_names, grad_norms             Hub names [K] and Euclidean norms [K] of the gradients of `loss`

A separate safetensors file may hold the gradients, under Hub names.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import paddle

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.hub import read_array, read_header
from erniekit.checkpoint.names import hub_tensors, take
from erniekit.checkpoint.weights import array_of, load_model
from erniekit.data.encode.positions import media_positions, text_positions
from erniekit.errors import VerifyError
from erniekit.kernels.cross_entropy import chunked_cross_entropy
from erniekit.local_files import placeholder_problem
from erniekit.models.config import VisionConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.row import RowInputs

# Norms of differences, relative to the norms of the stored arrays. Single elements are not compared: their terms may
# cancel, and processors sum in different orders.
LOGITS_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-3
# Gradients smaller than this share of the largest are compared relative to that share: together with the tolerance it
# is the precision of float32 for the large ones.
_GRADIENT_FLOOR = 1e-4
_CHUNK = 1024
_IGNORED = -100
_MEDIA = {1: ("in_pixel_values", "in_image_grid_thw"), 2: ("in_pixel_values_videos", "in_video_grid_thw")}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ReferenceReport:
    """How far Paddle is from a reference; None where the reference does not hold that part.

    `logits_relative`: norm of the difference, relative to that of the stored logits; `loss_relative`: of the
    reference's loss; `gradient_worst`: name and error, relative to the stored norm, of the parameter that differs
    most; `names_checked`: parameters whose gradients were compared.
    """

    logits_relative: float
    loss_relative: float | None
    gradient_worst: tuple[str, float] | None
    names_checked: tuple[str, ...]


def compare_with_reference(
    directory: str | Path, npz: str | Path, gradients: str | Path | None = None
) -> ReferenceReport:
    """Run a model directory in Paddle (float32) on a reference's inputs and compare.

    Raises CheckpointError where the model cannot be loaded, VerifyError where the reference is not in the
    above form or does not belong to this model.
    """
    stored = _read(Path(npz))
    model = load_model(directory)
    model.eval()
    return compare_model(model, stored, None if gradients is None else Path(gradients), str(npz))


def compare_model(model: ErnieModel, stored: Arrays, gradients: Path | None, where: str) -> ReferenceReport:
    """The comparison for a model in memory and a reference that was read; `where` names it in errors."""
    row, kept = reference_row(stored, model.config.vision, where)
    hidden = model(row).hidden
    logits = _logits_difference(model, hidden.detach(), stored["logits"][kept], where)
    loss_relative: float | None = None
    worst: tuple[str, float] | None = None
    names: tuple[str, ...] = ()
    if "labels" in stored and "loss" in stored:
        labels = _shifted(stored["labels"][kept], row.cu_seqlens)
        positions = np.flatnonzero(labels != _IGNORED)
        chosen = paddle.index_select(hidden, paddle.to_tensor(positions))
        total = chunked_cross_entropy(
            chosen, model.output_weight, paddle.to_tensor(labels[positions]), _CHUNK
        )
        loss = total / len(positions)
        loss_relative = abs(float(loss) - float(stored["loss"])) / abs(float(stored["loss"]))
        if "grad_names" in stored:
            model.clear_gradients()
            loss.backward()
            names = tuple(str(name) for name in stored["grad_names"])
            norms = {name: float(norm) for name, norm in zip(names, stored["grad_norms"], strict=True)}
            worst = _worst_gradient(model, norms, gradients, where)
    return ReferenceReport(logits, loss_relative, worst, names)


def reference_row(stored: Arrays, vision: VisionConfig | None, where: str) -> tuple[RowInputs, np.ndarray]:
    """The batch of a reference as one packed row, and a mask of the positions that are not padding, bool [B, T].

    Raises VerifyError for arrays that are missing or do not fit together.
    """
    ids = _of(stored, "in_input_ids", where)
    kept = stored.get("in_attention_mask", np.ones_like(ids)).astype(bool)
    media = any(grid in stored for _, grid in _MEDIA.values())
    if media and vision is None:
        raise VerifyError(f"{where}: has images, but the model is not a vision-language model")
    zeros = np.zeros_like(ids)
    kinds = _of(stored, "in_mm_token_type_ids", where) if media else zeros
    modality = _of(stored, "in_moe_mm_token_type_ids", where) if media else zeros
    grids = {kind: iter(stored.get(grid, np.zeros((0, 3), int))) for kind, (_, grid) in _MEDIA.items()}
    pixels = {kind: stored.get(values) for kind, (values, _) in _MEDIA.items()}
    used = dict.fromkeys(_MEDIA, 0)
    positions, patches, order = [], [np.zeros((0, vision.patch_dim if vision else 0), np.float32)], []
    for row_kinds, row_kept in zip(kinds, kept, strict=True):
        blocks = []
        for kind, count in _runs(row_kinds[row_kept]):
            grid = next(grids[kind], None) if kind else None
            if grid is not None:
                values = pixels[kind]
                assert values is not None
                patches.append(values[used[kind] : used[kind] + grid.prod()])
                used[kind] += int(grid.prod())
                order.append(grid)
            blocks.append((kind, count, grid))
        positions.append(_positions(blocks, vision, where))
    thw = (
        stored["position_ids_thw"][:, kept] if "position_ids_thw" in stored else np.concatenate(positions, 1)
    )
    row = RowInputs(
        input_ids=ids[kept].astype(np.int64),
        position_ids=thw.astype(np.int64),
        modality=(modality[kept] > 0).astype(np.int8),
        cu_seqlens=np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int32),
        patches=np.concatenate(patches).astype(np.float32),
        grid_thw=np.array(order, np.int32).reshape(-1, 3),
        media_positions=np.flatnonzero(kinds[kept] > 0).astype(np.int64),
    )
    return row, kept


def _read(file: Path) -> Arrays:
    problem = placeholder_problem(file)
    if problem is not None:
        raise VerifyError(f"{file}: {problem}")
    try:
        with np.load(file) as archive:
            stored = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise VerifyError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, zipfile.BadZipFile):
        raise VerifyError(f"{file}: is not an .npz file of plain arrays") from None
    _of(stored, "logits", str(file))
    return stored


def _of(stored: Arrays, name: str, where: str) -> np.ndarray:
    if name not in stored:
        raise VerifyError(f"{where}: holds no array {name!r}; it has {', '.join(sorted(stored))}")
    return stored[name]


def _runs(kinds: np.ndarray) -> Iterator[tuple[int, int]]:
    """(kind, length) of each run of tokens of one kind."""
    for kind, group in groupby(kinds.tolist()):
        yield kind, len(list(group))


def _positions(
    blocks: list[tuple[int, int, np.ndarray | None]], vision: VisionConfig | None, where: str
) -> np.ndarray:
    """Time, height and width of each token, int [3, T], see `erniekit.data.encode.positions`."""
    columns, current = [], 0
    for kind, count, grid in blocks:
        if not kind:
            block, current = text_positions(current, count)
            columns.append(block)
            continue
        if grid is None or vision is None:
            raise VerifyError(f"{where}: has more runs of image tokens than images")
        frames, height, width = (int(side) for side in grid)
        box = (
            frames // vision.temporal_merge_size if kind == 2 else frames,
            height // vision.spatial_merge_size,
            width // vision.spatial_merge_size,
        )
        if box[0] * box[1] * box[2] != count:
            raise VerifyError(f"{where}: {count} image tokens for a grid of {grid.tolist()} patches")
        block, current = media_positions(current, *box)
        columns.append(block)
    return np.concatenate(columns, axis=1)


def _shifted(labels: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """Labels [T] shifted to the position that predicts them; the last position of each document has none."""
    shifted = np.append(labels[1:], _IGNORED)
    shifted[cu_seqlens[1:] - 1] = _IGNORED
    return shifted


def _logits_difference(model: ErnieModel, hidden: paddle.Tensor, wanted: np.ndarray, where: str) -> float:
    if wanted.shape != (hidden.shape[0], model.config.vocab_size):
        raise VerifyError(
            f"{where}: logits of {list(wanted.shape)}, "
            f"this model gives {[hidden.shape[0], model.config.vocab_size]}"
        )
    error = norm = 0.0
    with paddle.no_grad():
        for start in range(0, len(wanted), _CHUNK):
            logits = model.logits(hidden[start : start + _CHUNK]).astype("float32").numpy()
            part = wanted[start : start + _CHUNK].astype(np.float64)
            error, norm = error + np.square(logits - part).sum(), norm + np.square(part).sum()
    return float(np.sqrt(error / norm))


def _worst_gradient(
    model: ErnieModel, norms: dict[str, float], file: Path | None, where: str
) -> tuple[str, float]:
    parameters = dict(model.named_parameters())
    own = {tensor.name: tensor for tensor in hub_tensors(model)}
    tensors = read_header(file) if file is not None else {}
    for source, names in ((where, set(norms)), (str(file), set(tensors) if file is not None else set(norms))):
        differing = sorted(names ^ set(own))
        if differing:
            side = "only the reference has" if differing[0] in names else "the reference lacks"
            raise VerifyError(f"{source}: its gradients do not belong to this model: {side} {differing[0]}")
    floor = _GRADIENT_FLOOR * max(norms.values())
    worst = ("", -1.0)
    for name, norm in norms.items():
        gradient, shape = parameters[own[name].parameter].grad, own[name].shape
        mine = np.zeros(shape, np.float32) if gradient is None else array_of(take(gradient, own[name]))
        error = abs(float(np.linalg.norm(mine)) - norm)
        if name in tensors:
            if tensors[name].shape != shape:
                raise VerifyError(
                    f"{file}: {name} is {list(tensors[name].shape)}, the model has {list(shape)}"
                )
            theirs = as_dtype(read_array(tensors[name]), tensors[name].dtype, "F32")
            error = max(error, float(np.linalg.norm(mine - theirs)))
        error /= max(norm, floor)
        if not error <= worst[1]:
            worst = (name, error)
        if np.isnan(error):
            break
    return worst
