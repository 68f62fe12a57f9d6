"""Linear layers with low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.kernels.grouped_mlp import ExpertWeight
from erniekit.layers import Linear, QuantizedParameter, weight_of
from erniekit.moe.experts import StackedLinear


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
        dtype = _adapter_dtype(base.weight)
        self.lora_A = Linear(self.in_features, rank, dtype=dtype)
        self.lora_B = Linear(rank, self.out_features, dtype=dtype)

    def reset(self, seed: int, name: str) -> None:
        """Initialise `lora_A`; the values depend only on the seed and the name of the module."""
        _assign(self.lora_A.weight, _initial_values(seed, name, self.lora_A.weight.shape))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if not self.active:
            return super().forward(x)
        inner = F.dropout(x, self.dropout, training=self.training) if self.dropout else x
        # Scaled where the rows are `rank` wide.
        return super().forward(x) + self.lora_B(self.lora_A(inner) * self.scaling)


class LoraStackedLinear(StackedLinear):
    """The linear layers of a stack of experts, some or all of them with adapters. See `LoraLinear`.

    adapted: the names of the layers with adapters, of `base.modules`. `lora_A.weight` [adapted, rank, in] and
    `lora_B.weight` [adapted, out, rank] hold one adapter after another.
    """

    def __init__(
        self, base: StackedLinear, adapted: Collection[str], rank: int, alpha: float, dropout: float
    ) -> None:
        super(StackedLinear, self).__init__()
        self.modules, self.weight = base.modules, base.weight
        self.scaling = alpha / rank
        self.dropout = dropout
        self.active = True
        experts, rows, inner = base.weight.shape
        self._parts = len(base.modules) // experts
        dtype = _adapter_dtype(base.weight)
        places = [place for place, module in enumerate(base.modules) if module in adapted]
        names = [base.modules[place] for place in places]
        self.lora_A = StackedLinear([f"{name}.lora_A" for name in names], len(names), rank, inner, dtype)
        self.lora_B = StackedLinear(
            [f"{name}.lora_B" for name in names], len(names), rows // self._parts, rank, dtype
        )
        # None: every layer of the stack has an adapter.
        self._places = None if len(places) == len(base.modules) else paddle.to_tensor(places, dtype="int64")

    def reset(self, seed: int, path: str) -> None:
        """Initialise `lora_A` as `LoraLinear` does for each layer by itself. path: of the layer's experts."""
        shape = self.lora_A.weight.shape[1:]
        names = [f"{path}.{name.removesuffix('.lora_A')}" for name in self.lora_A.modules]
        _assign(self.lora_A.weight, np.stack([_initial_values(seed, name, shape) for name in names]))

    def operand(self) -> ExpertWeight:
        if not self.active:
            return super().operand()
        experts = self.weight.shape[0]
        halves = [self._stacked(half.weight, experts) for half in (self.lora_A, self.lora_B)]
        dropout = self.dropout if self.training else 0.0
        return ExpertWeight(weight_of(self.weight), halves[0], halves[1], self.scaling, dropout)

    def _stacked(self, half: Tensor, experts: int) -> Tensor:
        """[adapted, rows, columns] -> [experts, parts * rows, columns]; layers without an adapter have zeros."""
        _, rows, columns = half.shape
        if self._places is not None:
            half = paddle.scatter(
                paddle.zeros([len(self.modules), rows, columns], half.dtype), self._places, half
            )
        return half.reshape([experts, self._parts * rows, columns])


Adapter = LoraLinear | LoraStackedLinear


def _adapter_dtype(weight: Tensor | QuantizedParameter) -> str:
    return "bfloat16" if weight.dtype == paddle.bfloat16 else "float32"


def _initial_values(seed: int, name: str, shape: list[int]) -> np.ndarray:
    """Values of one lora_A [rank, in]."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    bound = shape[1] ** -0.5
    return np.random.default_rng(list(digest)).uniform(-bound, bound, shape)


def _assign(parameter: Tensor, values: np.ndarray) -> None:
    parameter.set_value(paddle.to_tensor(values, dtype=parameter.dtype))
