"""The packed sequence ("row") that the model takes: documents side by side, no padding, no batch dimension."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.media.images import source_name
from erniekit.data.media.patches import PATCH_DIM, Patches


@dataclass(frozen=True)
class PackedBatch:
    """One row of T tokens in D documents, with N images and videos of P patches and M placeholder tokens in total.

    input_ids int64 [T]; labels int64 [T], already shifted: the token to predict at position t, -100 for none (always at
    the end of a document); position_ids int64 [3, T] (t, h, w), from 0 in each document; modality int8 [T], 1 for
    vision placeholders and their start and end markers; cu_seqlens int32 [D + 1], the boundaries of the documents;
    patches uint8 [P, patch_dim], see `erniekit.data.media.patches`; grid_thw int32 [N, 3], in patches; media_positions
    int64 [M], the positions of the vision features, in the order of grid_thw; sample_ids: one per document;
    media_names: the paths or URLs of the images and videos of each document. For preference pairs also: branches int32
    [D, 2], the starts of the chosen and the rejected answer of each document ([0, 2] without pairs); reference float32
    [D, 2], `Document.reference`, None if any document has none.
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
    media_names: tuple[tuple[str, ...], ...] = ()

    @property
    def num_loss_tokens(self) -> int:
        """Positions with a label."""
        return int(np.count_nonzero(self.labels != IGNORE))


def pack(documents: Sequence[Document], patches: Sequence[Patches]) -> PackedBatch:
    """Pack at least one document into a row. Either all documents are preference pairs, or none is.

    patches: the patches of every image and video, in the order of the documents and their media.
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
        media_names=tuple(
            tuple(source_name(item.source) for item in document.media) for document in documents
        ),
    )


def split(batch: PackedBatch) -> list[PackedBatch]:
    """Split a row into one row per document, as `pack` makes it from that document alone."""
    rows, image = [], 0
    patch_bounds = np.concatenate([[0], np.cumsum(batch.grid_thw.astype(np.int64).prod(1))])
    for number, (start, stop) in enumerate(pairwise(batch.cu_seqlens.tolist())):
        first, image = image, image + len(batch.media_names[number])
        inside = (batch.media_positions >= start) & (batch.media_positions < stop)
        rows.append(
            PackedBatch(
                input_ids=batch.input_ids[start:stop],
                labels=batch.labels[start:stop],
                position_ids=batch.position_ids[:, start:stop],
                modality=batch.modality[start:stop],
                cu_seqlens=np.array([0, stop - start], np.int32),
                patches=batch.patches[patch_bounds[first] : patch_bounds[image]],
                grid_thw=batch.grid_thw[first:image],
                media_positions=batch.media_positions[inside] - start,
                sample_ids=batch.sample_ids[number : number + 1],
                branches=batch.branches[number : number + 1] - start,
                reference=None if batch.reference is None else batch.reference[number : number + 1],
                media_names=batch.media_names[number : number + 1],
            )
        )
    return rows


def filler() -> PackedBatch:
    """A row without a sample: one token, no label. A process computes it while others still have rows."""
    document = Document(np.zeros(1, np.int32), np.full(1, IGNORE, np.int32), (), "")
    return dataclasses.replace(pack([document], []), sample_ids=())
