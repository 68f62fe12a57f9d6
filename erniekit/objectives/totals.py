"""The counts that normalise the losses of a step, known before its first forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erniekit.data.encode.document import IGNORE
from erniekit.data.load.batch import PackedBatch

MODALITIES = ("text", "vision")


@dataclass(frozen=True)
class StepTotals:
    """Counts over all rows of a step, on all processes.

    `loss_tokens`: positions with a label; `positions`: positions of full rows, the same in every step;
    `modality_tokens`: tokens of each of MODALITIES; `pairs`: preference pairs; `chosen_tokens`: loss tokens of their
    chosen answers.
    """

    loss_tokens: int
    positions: int
    modality_tokens: tuple[int, int]
    pairs: int = 0
    chosen_tokens: int = 0


def is_filler(batch: PackedBatch) -> bool:
    """Whether a row has no sample: it only keeps this process in step with the others, and is not counted."""
    return not batch.sample_ids


def count_rows(batches: Sequence[PackedBatch]) -> np.ndarray:
    """Rows, loss tokens, text tokens and vision tokens, int64 [4]. Counts of several processes can be summed."""
    counts = np.zeros(4, np.int64)
    for batch in batches:
        if not is_filler(batch):
            vision = int(np.count_nonzero(batch.modality))
            counts += (1, batch.num_loss_tokens, len(batch.modality) - vision, vision)
    return counts


def count_pairs(batches: Sequence[PackedBatch]) -> np.ndarray:
    """Preference pairs and loss tokens of their chosen answers, int64 [2].

    Counts of several processes can be summed.
    """
    counts = np.zeros(2, np.int64)
    for batch in batches:
        for chosen, rejected in batch.branches:
            counts += (1, int(np.count_nonzero(batch.labels[chosen:rejected] != IGNORE)))
    return counts
