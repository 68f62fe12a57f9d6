"""One packed row, on the host and on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from paddle import Tensor

from erniekit.kernels.embedding import TokensById
from erniekit.models.attention import Attend
from erniekit.models.rope import VisionRotation
from erniekit.moe.router import ModalityIndex


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


@dataclass(frozen=True)
class DevicePatches:
    """Patches of images and videos, and how the vision tower and the resampler read them.

    `pixels` [P, patch_dim], uint8 or normalised float32; `mean` and `std` float32 [patch_dim]; `frame_pairs`: of each
    media token the tokens of the earlier and the later frame, int64 [n] each, None if all media are images.
    """

    pixels: Tensor
    mean: Tensor
    std: Tensor
    rotation: VisionRotation
    attend: Attend
    frame_pairs: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class DeviceRow:
    """What a model reads of a row, on the device: uploaded once, and used by all layers.

    `inputs` is the whole row on the host; `by_id` is `sort_by_id` of `input_ids`. With context parallelism the tensors
    belong to the span of this process; `patches` is None if it computes none.
    """

    inputs: RowInputs
    input_ids: Tensor
    by_id: TokensById | None
    rotation: Tensor
    index: ModalityIndex
    attend: Attend
    media_positions: Tensor
    patches: DevicePatches | None
