"""The resampler: from patches of the vision tower to tokens of the language model."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from erniekit.layers import LayerNorm, Linear, RMSNorm
from erniekit.models.config import VISION_NORM_EPS, VisionConfig


class Merge(nn.LayerDict):
    """Linear, GELU, linear, layer norm, under the Hub's names 0, 2 and 3 (1 is the activation)."""

    def __init__(self, in_features: int, width: int, dtype: str) -> None:
        super().__init__(
            {
                "0": Linear(in_features, width, bias=True, dtype=dtype),
                "2": Linear(width, width, bias=True, dtype=dtype),
                "3": LayerNorm(width, VISION_NORM_EPS, dtype),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, width]."""
        return self["3"](self["2"](F.gelu(self["0"](x))))


class Resampler(nn.Layer):
    """Merges 2 x 2 patches, then pairs of frames, then maps to the decoder's width.

    An image is its own pair; a video has an even number of frames. The part of a checkpoint under
    `model.resampler_model.`; agrees with transformers' Ernie4_5_VLMoeVariableResolutionResamplerModel.
    """

    def __init__(self, vision: VisionConfig, hidden_size: int, eps: float, dtype: str) -> None:
        super().__init__()
        self.vision = vision
        width = vision.spatial_dim
        self.spatial_linear = Merge(width, width, dtype)
        self.temporal_linear = Merge(width * vision.temporal_merge_size, width, dtype)
        self.mlp = Linear(width, hidden_size, bias=True, dtype=dtype)
        self.after_norm = RMSNorm(hidden_size, eps, dtype)

    def forward(self, x: Tensor, frame_pairs: tuple[Tensor, Tensor] | None) -> Tensor:
        """Patches [P, width] -> [media tokens, hidden]; `frame_pairs` from the method of this name, uploaded."""
        x = self.spatial_linear(x.reshape([-1, self.vision.spatial_dim]))
        if frame_pairs is None:
            pairs = paddle.concat([x, x], axis=-1)
        else:
            first, second = frame_pairs
            pairs = paddle.concat([paddle.index_select(x, first), paddle.index_select(x, second)], axis=-1)
        return self.after_norm(self.mlp(self.temporal_linear(pairs)))

    def frame_pairs(self, grid_thw: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """For every media token of int [N, 3] images and videos, the indices of its tokens in the earlier and the later
        frame, int64 [n] each. None if all are images: the frames of an image are the same."""
        if (grid_thw[:, 0] == 1).all():
            return None
        first, second, offset = [], [], 0
        for frames, height, width in grid_thw.tolist():
            size = height * width // self.vision.spatial_merge_size**2
            tokens = offset + np.arange(frames * size).reshape(frames, size)
            first.append(tokens[::2].reshape(-1))
            second.append(tokens[1::2].reshape(-1) if frames > 1 else tokens.reshape(-1))
            offset += frames * size
        return np.concatenate(first), np.concatenate(second)
