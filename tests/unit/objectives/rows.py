"""A small vision-language model and rows for it, without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle

from erniekit.data.load.batch import PackedBatch
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.objectives.totals import StepTotals, count_rows
from tests.model_configs import FLAT

ROOM = 32
START, PLACEHOLDER, END = 14, 9, 15


def make_model(seed: int = 0) -> ErnieModel:
    """Random weights; every parameter but the correction bias is trained."""
    model = build_model(ErnieConfig.from_json(FLAT))
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        shift = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        values = rng.standard_normal(parameter.shape) * 0.3 + shift
        parameter.set_value(paddle.to_tensor(values.astype(np.float32)))
    model.train()
    return model


def make_row(lengths: Sequence[int], seed: int = 0, *, images: int = 0) -> PackedBatch:
    """Documents of those lengths, the first `images` with an image of one token; about half have a label."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(20, 60, sum(lengths))
    labels = np.where(rng.random(len(ids)) < 0.5, rng.integers(20, 60, len(ids)), -100)
    modality = np.zeros(len(ids), np.int8)
    starts = np.cumsum([0, *lengths])
    for start in starts[:images]:
        ids[start : start + 3] = START, PLACEHOLDER, END
        modality[start : start + 3] = 1
    labels[starts[1:] - 1] = -100
    labels[starts[1:] - 2] = 40
    return PackedBatch(
        input_ids=ids,
        labels=labels,
        position_ids=np.tile(np.concatenate([np.arange(length) for length in lengths]), (3, 1)),
        modality=modality,
        cu_seqlens=starts.astype(np.int32),
        patches=rng.integers(0, 256, (4 * images, 588)).astype(np.uint8),
        grid_thw=np.tile(np.array([[1, 2, 2]], np.int32), (images, 1)),
        media_positions=starts[:images] + 1,
        sample_ids=tuple(f"a:{number}" for number in range(len(lengths))),
    )


def split_row(row: PackedBatch) -> list[PackedBatch]:
    """Each document in a row of its own."""
    rows = []
    num_images = len(row.grid_thw)
    for number, (start, stop) in enumerate(zip(row.cu_seqlens[:-1], row.cu_seqlens[1:], strict=True)):
        has = number < num_images
        rows.append(
            PackedBatch(
                input_ids=row.input_ids[start:stop],
                labels=row.labels[start:stop],
                position_ids=row.position_ids[:, start:stop],
                modality=row.modality[start:stop],
                cu_seqlens=np.array([0, stop - start], np.int32),
                patches=row.patches[4 * number : 4 * number + 4] if has else row.patches[:0],
                grid_thw=row.grid_thw[number : number + 1] if has else row.grid_thw[:0],
                media_positions=np.array([1]) if has else row.media_positions[:0],
                sample_ids=row.sample_ids[number : number + 1],
            )
        )
    return rows


def filler() -> PackedBatch:
    """One token, no label, no sample."""
    none = np.zeros(0, np.int64)
    return PackedBatch(
        input_ids=np.array([20]),
        labels=np.array([-100]),
        position_ids=np.zeros((3, 1), np.int64),
        modality=np.zeros(1, np.int8),
        cu_seqlens=np.array([0, 1], np.int32),
        patches=np.zeros((0, 588), np.uint8),
        grid_thw=np.zeros((0, 3), np.int32),
        media_positions=none,
        sample_ids=(),
    )


def totals_of(rows: Sequence[PackedBatch]) -> StepTotals:
    """As the loop counts them, with room for one full row."""
    _, loss_tokens, text, vision = count_rows(rows).tolist()
    return StepTotals(loss_tokens, ROOM, (text, vision))


def gradients_of(model: ErnieModel) -> dict[str, np.ndarray]:
    """Those that are there; they are cleared."""
    found = {n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():
        parameter.clear_gradient(False)
    return found
