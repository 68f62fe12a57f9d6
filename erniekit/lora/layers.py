"""A linear layer with a low-rank adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import hashlib

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.layers import Linear


class LoraLinear(Linear):
    """`y = x W^T + (alpha / rank) dropout(x) A^T B^T`, with W frozen.

    `lora_A.weight` [rank, in] is initialised uniformly in +-1/sqrt(in), `lora_B.weight` [out, rank] with zeros, so that
    the layer initially equals its base. With `active` False the adapter is disabled.
    """

    def __init__(self, base: Linear, rank: int, alpha: float, dropout: float) -> None:
        super(Linear, self).__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scaling = alpha / rank
        self.dropout = dropout
        self.active = True
        dtype = "bfloat16" if base.weight.dtype == paddle.bfloat16 else "float32"
        self.lora_A = Linear(self.in_features, rank, dtype=dtype)
        self.lora_B = Linear(rank, self.out_features, dtype=dtype)

    def reset(self, seed: int, name: str) -> None:
        """Initialise `lora_A`; the values depend only on the seed and the name of the module."""
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        bound = self.in_features**-0.5
        values = np.random.default_rng(list(digest)).uniform(-bound, bound, self.lora_A.weight.shape)
        self.lora_A.weight.set_value(paddle.to_tensor(values, dtype=self.lora_A.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if not self.active:
            return super().forward(x)
        inner = F.dropout(x, self.dropout, training=self.training) if self.dropout else x
        return super().forward(x) + self.lora_B(self.lora_A(inner)) * self.scaling
