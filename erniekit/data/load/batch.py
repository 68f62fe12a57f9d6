"""The packed sequence ("row") that a model is given: documents side by side, no padding, no batch dimension."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.media.patches import PATCH_DIM, Patches


@dataclass(frozen=True)
class PackedBatch:
    """One row of T tokens in D documents, with N images of P patches and M placeholders in all.

    input_ids [T] int64; labels [T] int64, already shifted: the token that position t must predict, -100 =
    none (always at the end of a document); position_ids [3, T] int64 (t, h, w), from 0 in each document;
    modality [T] int8, 1 for vision placeholders and their start and end markers; cu_seqlens [D + 1] int32,
    document boundaries; patches [P, patch_dim] uint8, see vision.patchify; grid_thw [N, 3] int32, in patches;
    media_positions [M] int64, the positions that take the vision features, in the order of grid_thw;
    sample_ids, one per document. Of preference pairs also: branches [D, 2] int32, where the chosen and the
    rejected answer of each document begin, [0, 2] elsewhere; reference [D, 2] float32, `Document.reference`, None
    where any lacks it.
    """

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    modality: npt.NDArray[np.int8]
    cu_seqlens: npt.NDArray[np.int32]
    patches: npt.NDArray[np.uint8]
    grid_thw: npt.NDArray[np.int32]
    media_positions: npt.NDArray[np.int64]
    sample_ids: tuple[str, ...]
    branches: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    reference: npt.NDArray[np.float32] | None = None

    @property
    def num_loss_tokens(self) -> int:
        """Positions with a label."""
        return int(np.count_nonzero(self.labels != IGNORE))


def pack(documents: Sequence[Document], patches: Sequence[Patches]) -> PackedBatch:
    """Documents, at least one, as a row: all pairs, or none.

    patches: of every image and video, in the order of documents and their media.
    """
    lengths = [len(document) for document in documents]
    boundaries = np.concatenate([[0], np.cumsum(lengths)])
    grids = [item.grid_thw for document in documents for item in document.media]
    starts = boundaries[:-1]
    branches = [
        [start + branch for branch in document.branches]
        for document, start in zip(documents, starts.tolist(), strict=True)
        if document.branches is not None
    ]
    references = [document.reference for document in documents if document.reference is not None]
    return PackedBatch(
        input_ids=np.concatenate([document.input_ids for document in documents]).astype(np.int64),
        labels=np.concatenate([document.labels for document in documents]).astype(np.int64),
        position_ids=np.concatenate([document.position_ids for document in documents], axis=1),
        modality=np.concatenate([document.modality for document in documents]),
        cu_seqlens=boundaries.astype(np.int32),
        patches=np.concatenate(patches) if patches else np.zeros((0, PATCH_DIM), np.uint8),
        grid_thw=np.asarray(grids, np.int32).reshape(-1, 3),
        media_positions=np.concatenate(
            [document.media_positions + start for document, start in zip(documents, starts, strict=True)]
        ),
        sample_ids=tuple(document.sample_id for document in documents),
        branches=np.asarray(branches, np.int32).reshape(-1, 2),
        reference=np.asarray(references, np.float32) if len(references) == len(documents) else None,
    )


def filler() -> PackedBatch:
    """A row without a sample: one token, no label. It keeps a process in step with others that have rows left."""
    document = Document(np.zeros(1, np.int32), np.full(1, IGNORE, np.int32), (), "")
    return dataclasses.replace(pack([document], []), sample_ids=())
