"""Building blocks with the Hub's parameter names and shapes. Weights start as zeros and are filled by a loader."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from erniekit.kernels.embedding import TokensById, embedding
from erniekit.kernels.quantize import QuantizedWeight, Weight, quantized_linear, quantized_shapes
from erniekit.kernels.rms_norm import add_rms_norm, rms_norm
from erniekit.kernels.swiglu import swiglu


class QuantizedParameter(nn.Layer):
    """A frozen weight [..., out, in] in 8 or 4 bits, which replaces a parameter. See `QuantizedWeight`."""

    def __init__(self, shape: list[int], bits: int, dtype: paddle.dtype) -> None:
        super().__init__()
        codes, scales = quantized_shapes(shape, bits)
        self.codes = _zeros(self, codes, "uint8" if bits == 4 else "int8")
        self.scales = _zeros(self, scales, dtype)
        self.codes.stop_gradient = self.scales.stop_gradient = True

    @property
    def value(self) -> QuantizedWeight:
        """Codes and scales."""
        return QuantizedWeight(self.codes, self.scales)

    @property
    def shape(self) -> list[int]:
        """[..., out, in]."""
        return self.value.shape

    @property
    def dtype(self) -> paddle.dtype:
        """The dtype of the weight before quantization, which the model computes in."""
        return self.scales.dtype


def weight_of(parameter: Tensor | QuantizedParameter) -> Weight:
    """The weight that a kernel takes."""
    return parameter.value if isinstance(parameter, QuantizedParameter) else parameter


class Linear(nn.Layer):
    """`y = x W^T + b` with `weight` [out, in] as on the Hub, so checkpoints need no transposition."""

    weight: Tensor | QuantizedParameter

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, dtype: str = "float32"
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = _zeros(self, [out_features, in_features], dtype)
        self.bias = _zeros(self, [out_features], dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if isinstance(self.weight, QuantizedParameter):
            return quantized_linear(x, self.weight.value, self.bias)
        y = paddle.matmul(x, self.weight, transpose_y=True)
        return y if self.bias is None else y + self.bias


class Embedding(nn.Layer):
    """Rows of `weight` [vocab, hidden]."""

    def __init__(self, vocab_size: int, hidden_size: int, dtype: str = "float32") -> None:
        super().__init__()
        self.weight = _zeros(self, [vocab_size, hidden_size], dtype)

    def forward(self, ids: Tensor, by_id: TokensById | None = None) -> Tensor:
        """int64 [T] -> [T, hidden]. by_id: `sort_by_id` of the row, which the gradient may need."""
        return embedding(ids, self.weight, by_id)


class LayerNorm(nn.Layer):
    """Layer normalization with weight and bias."""

    def __init__(self, width: int, eps: float, dtype: str = "float32") -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = _zeros(self, [width], dtype)
        self.bias = _zeros(self, [width], dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return F.layer_norm(x, [self.width], self.weight, self.bias, self.eps)


class RMSNorm(nn.Layer):
    """Root-mean-square normalization; statistics in float32."""

    def __init__(self, width: int, eps: float, dtype: str = "float32") -> None:
        super().__init__()
        self.eps = eps
        self.weight = _zeros(self, [width], dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[T, width] -> [T, width]."""
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of both [T, width], and its norm, in one kernel on a GPU."""
        return add_rms_norm(x, residual, self.weight, self.eps)


class Mlp(nn.Layer):
    """SwiGLU: `down(silu(gate(x)) * up(x))`; a dense layer, one expert, or all shared experts fused."""

    def __init__(self, hidden_size: int, intermediate_size: int, dtype: str = "float32") -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, dtype=dtype)
        self.up_proj = Linear(hidden_size, intermediate_size, dtype=dtype)
        self.down_proj = Linear(intermediate_size, hidden_size, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


def _zeros(layer: nn.Layer, shape: list[int], dtype: paddle.dtype | str) -> Tensor:
    return layer.create_parameter(shape, dtype=dtype, default_initializer=nn.initializer.Constant(0.0))
