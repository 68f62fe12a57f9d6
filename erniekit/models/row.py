"""One packed row, as the model takes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RowInputs:
    """The model's inputs of a packed row, on the host.

    `input_ids` int64 [T]; `position_ids` int64 [3, T]; `modality` int8 [T] (0 text, 1 vision);
    `cu_seqlens` int32 [D + 1]; `patches` [P, patch_dim], uint8 or normalised float32; `grid_thw` int32 [N, 3];
    `media_positions` int64 [M], the positions of vision features, in the order of the media. `valid` is False for a
    filler row, which a process computes while others still have rows; routers do not count it.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    modality: np.ndarray
    cu_seqlens: np.ndarray
    patches: np.ndarray
    grid_thw: np.ndarray
    media_positions: np.ndarray
    valid: bool = True
