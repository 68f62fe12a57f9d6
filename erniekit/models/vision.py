"""The vision transformer: patches of any number of images and frames in one row."""

from __future__ import annotations

from functools import partial

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from erniekit.kernels.rope import rotate_halves
from erniekit.layers import LayerNorm, Linear
from erniekit.models.attention import Attend, DocumentAttention
from erniekit.models.config import VISION_NORM_EPS, VisionConfig
from erniekit.models.layer_runner import DirectLayers, LayerRunner
from erniekit.models.rope import VisionRotation
from erniekit.upload import Upload


class VisionAttention(nn.Layer):
    """Full attention inside each frame."""

    def __init__(self, vision: VisionConfig, dtype: str) -> None:
        super().__init__()
        self.num_heads = vision.num_heads
        self.qkv = Linear(vision.hidden_size, 3 * vision.hidden_size, bias=True, dtype=dtype)
        self.proj = Linear(vision.hidden_size, vision.hidden_size, bias=True, dtype=dtype)

    def forward(self, x: Tensor, rotation: VisionRotation, attend: Attend) -> Tensor:
        """[P, width] -> [P, width]."""
        patches, width = x.shape
        heads = self.qkv(x).reshape([patches, 3 * self.num_heads, width // self.num_heads])
        # Queries and keys rotate alike and in one call.
        both, value = heads.split([2 * self.num_heads, self.num_heads], axis=1)
        query, key = rotate_halves(both, *rotation).split(2, axis=1)
        return self.proj(attend(0, query, key, value).reshape([patches, width]))


class VisionMlp(nn.Layer):
    """Two linear layers around quick GELU, x * sigmoid(1.702 x)."""

    def __init__(self, vision: VisionConfig, dtype: str) -> None:
        super().__init__()
        self.fc1 = Linear(vision.hidden_size, vision.intermediate_size, bias=True, dtype=dtype)
        self.fc2 = Linear(vision.intermediate_size, vision.hidden_size, bias=True, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[P, width] -> [P, width]."""
        x = self.fc1(x)
        return self.fc2(x * F.sigmoid(1.702 * x))


class VisionBlock(nn.Layer):
    """Attention and MLP, each behind a layer norm and a residual."""

    def __init__(self, vision: VisionConfig, dtype: str) -> None:
        super().__init__()
        self.norm1 = LayerNorm(vision.hidden_size, VISION_NORM_EPS, dtype)
        self.norm2 = LayerNorm(vision.hidden_size, VISION_NORM_EPS, dtype)
        self.attn = VisionAttention(vision, dtype)
        self.mlp = VisionMlp(vision, dtype)

    def forward(self, x: Tensor, rotation: VisionRotation, attend: Attend) -> Tensor:
        """[P, width] -> [P, width]."""
        x = x + self.attn(self.norm1(x), rotation, attend)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Layer):
    """A linear map of the values of a patch; no position is added."""

    def __init__(self, vision: VisionConfig, dtype: str) -> None:
        super().__init__()
        self.proj = Linear(vision.patch_dim, vision.hidden_size, dtype=dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """[P, patch_dim] -> [P, width]."""
        return self.proj(pixels)


class VisionTower(nn.Layer):
    """The part of a checkpoint under `vision_model.`.

    Agrees with transformers' Ernie4_5_VLMoeVisionTransformerPretrainedModel.
    """

    def __init__(self, vision: VisionConfig, dtype: str) -> None:
        super().__init__()
        self.vision = vision
        self.patch_embed = PatchEmbed(vision, dtype)
        self.blocks = nn.LayerList(VisionBlock(vision, dtype) for _ in range(vision.depth))
        self.ln = LayerNorm(vision.hidden_size, VISION_NORM_EPS, dtype)
        # Runs the blocks, and after them the resampler. Training may replace it.
        self.layer_runner: LayerRunner = DirectLayers()

    def forward(self, pixels: Tensor, rotation: VisionRotation, attend: Attend) -> Tensor:
        """Normalised patches [P, patch_dim] -> [P, width], with `vision_rotation` and `attention` of the media."""
        x = self.patch_embed(pixels)
        for number, block in enumerate(self.blocks):
            (x,) = self.layer_runner(number, partial(_block, block, rotation, attend), x)
        return self.ln(x)

    def attention(self, grid_thw: np.ndarray, upload: Upload = paddle.to_tensor) -> DocumentAttention:
        """Attention inside each frame of images and videos, int [N, 3]."""
        frames = np.repeat(grid_thw[:, 1] * grid_thw[:, 2], grid_thw[:, 0])
        cu_seqlens = np.concatenate([[0], np.cumsum(frames)]).astype(np.int32)
        return DocumentAttention(cu_seqlens, causal=False, heads=self.vision.num_heads, upload=upload)


def _block(block: VisionBlock, rotation: VisionRotation, attend: Attend, x: Tensor) -> tuple[Tensor]:
    return (block(x, rotation, attend),)
