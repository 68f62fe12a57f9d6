"""Angles of rotary position embeddings: of the decoder (1-D and 3-D) and of the vision tower (2-D). Float32."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor

from erniekit.models.config import VISION_ROPE_THETA, ErnieConfig, VisionConfig
from erniekit.upload import Upload

VisionRotation = tuple[Tensor, Tensor]
"""Cosine and sine of `vision_rotation`."""


def decoder_rotation(
    position_ids: np.ndarray, config: ErnieConfig, upload: Upload = paddle.to_tensor
) -> Tensor:
    """Cosine and sine of every pair of channels, float32 [T, head_dim / 2, 2].

    `position_ids` int64 [3, T] hold time, height and width. In VL models pair i follows height where i is
    even, width where it is odd, and time in the last `mrope_section[2]` pairs; elsewhere all follow time.
    Agrees with transformers' Ernie4_5_VLMoeTextRotaryEmbedding and Ernie4_5RotaryEmbedding.
    """
    pairs = config.head_dim // 2
    frequencies = config.rope_theta ** (-np.arange(pairs, dtype=np.float32) * 2 / config.head_dim)
    axis = np.zeros(pairs, np.int64)
    if config.mrope_section is not None:
        spatial = pairs - config.mrope_section[2]
        axis[:spatial:2], axis[1:spatial:2] = 1, 2
    positions = paddle.index_select(upload(position_ids), upload(axis), axis=0).t().astype("float32")
    angles = positions * upload(frequencies.astype(np.float32))
    return paddle.stack([paddle.cos(angles), paddle.sin(angles)], -1)


def vision_rotation(
    grid_thw: np.ndarray, vision: VisionConfig, upload: Upload = paddle.to_tensor
) -> VisionRotation:
    """Cosine and sine, float32 [P, 1, head_dim / 2], of every patch of images and videos int [N, 3].

    The first half of the angles follows the patch's row, the second its column; patches come in the order of
    the spatial merge. Agrees with transformers' Ernie4_5_VLMoeVisionRotaryEmbedding.
    """
    merge = vision.spatial_merge_size
    coordinates = []
    for frames, height, width in grid_thw.tolist():
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        grid = np.stack([rows, columns], -1).reshape(height // merge, merge, width // merge, merge, 2)
        coordinates.append(np.tile(grid.transpose(0, 2, 1, 3, 4).reshape(-1, 2), (frames, 1)))
    quarter = vision.hidden_size // vision.num_heads // 4
    frequencies = VISION_ROPE_THETA ** (-np.arange(quarter, dtype=np.float32) / quarter)
    angles = np.concatenate(coordinates)[:, :, None] * frequencies.astype(np.float32)
    angles = angles.reshape(-1, 1, 2 * quarter).astype(np.float32)
    return upload(np.cos(angles)), upload(np.sin(angles))
