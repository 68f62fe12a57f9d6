"""A packed row on the device, with what the losses read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor

from erniekit.data.encode.document import IGNORE
from erniekit.data.load.batch import PackedBatch
from erniekit.models.attention import Attend
from erniekit.models.ernie import ErnieModel
from erniekit.models.row import DeviceRow, RowInputs
from erniekit.objectives.totals import is_filler
from erniekit.upload import Upload


@dataclass(frozen=True)
class DeviceBatch:
    """A packed row, and all that the model and the losses read of it on the device.

    `positions`, `labels` int64 [n]: the loss tokens in the hidden states of this process. `answer_tokens` float32
    [D, 2], the loss tokens of both answers of D pairs in the whole row; `reference` float32 [2 D], None if the batch
    has none.
    """

    batch: PackedBatch
    row: DeviceRow
    positions: Tensor
    labels: Tensor
    answer_tokens: Tensor
    reference: Tensor | None


def upload_batch(
    model: ErnieModel, batch: PackedBatch, attend: Attend | None = None, upload: Upload = paddle.to_tensor
) -> DeviceBatch:
    """Copy a packed row to the device. `attend` replaces document attention."""
    start, stop = model.sharding.span(len(batch.labels))
    labels = batch.labels[start:stop]
    positions = np.flatnonzero(labels != IGNORE)
    return DeviceBatch(
        batch=batch,
        row=model.upload(row_inputs(batch), attend, upload),
        positions=upload(positions),
        labels=upload(labels[positions]),
        answer_tokens=upload(answer_tokens(batch).reshape(-1, 2).astype(np.float32)),
        reference=None if batch.reference is None else upload(batch.reference.reshape(-1)),
    )


def row_inputs(batch: PackedBatch) -> RowInputs:
    """The part of a packed batch that the model reads."""
    return RowInputs(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        modality=batch.modality,
        cu_seqlens=batch.cu_seqlens,
        patches=batch.patches,
        grid_thw=batch.grid_thw,
        media_positions=batch.media_positions,
        valid=not is_filler(batch),
    )


def answer_tokens(batch: PackedBatch, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Number of loss tokens of each branch, int64 [2 D] (chosen, rejected, chosen, ...).

    Counts positions from `start` up to `stop` (None: the end of the row). Shared prompts have no loss tokens.
    """
    ends = (
        np.stack([batch.branches[:, 1], batch.cu_seqlens[1:]], 1) if len(batch.branches) else batch.branches
    )
    found = start + np.flatnonzero(batch.labels[start:stop] != IGNORE)
    return np.diff(np.searchsorted(found, ends.reshape(-1)), prepend=0)
