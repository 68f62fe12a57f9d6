"""Frozen weights in 8 or 4 bits: integer codes, and a scale for each group of columns of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor

from erniekit.errors import ConfigError
from erniekit.kernels.choice import form_of
from erniekit.kernels.triton.runtime import pointer

GROUP_SIZES = {8: 128, 4: 64}
"""Columns that share a scale, by bits. The last group of a row may have fewer."""

# Elements that are quantized at a time, in float32.
_CHUNK = 1 << 24


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix [..., N, K], or a stack of them, as scale * code. It is never trained.

    codes: of 8 bits int8 [..., N, K]; of 4 bits uint8 [..., N, K / 2], with the even column in the low half of a byte,
    and 8 added to each code. scales [..., N, ceil(K / group)], in the dtype of the weight.
    """

    codes: Tensor
    scales: Tensor

    @property
    def bits(self) -> int:
        """8 or 4."""
        return 4 if self.codes.dtype == paddle.uint8 else 8

    @property
    def shape(self) -> list[int]:
        """[..., N, K]."""
        *outer, width = self.codes.shape
        return [*outer, 2 * width if self.bits == 4 else width]


Weight = Tensor | QuantizedWeight


def quantized_shapes(shape: list[int], bits: int) -> tuple[list[int], list[int]]:
    """The shapes of codes and scales of a weight. Raises ConfigError if 4-bit codes do not fill their bytes."""
    *outer, columns = shape
    if bits == 4 and columns % 2:
        raise ConfigError(
            f"int4 stores two columns in a byte, and a weight of shape {list(shape)} has an odd number: use int8"
        )
    codes = columns // 2 if bits == 4 else columns
    return [*outer, codes], [*outer, -(-columns // GROUP_SIZES[bits])]


def quantize(weight: Tensor, bits: int) -> QuantizedWeight:
    """Codes and scales of a weight [..., N, K], on its device. bits: 8 or 4.

    The value of the largest magnitude in a group has the lowest code, -2^(bits - 1), so a scale may be negative. Codes
    are rounded to nearest with the scale in the dtype of the weight.
    """
    shapes = quantized_shapes(weight.shape, bits)
    columns = weight.shape[-1]
    rows = weight.reshape([-1, columns])
    step = max(_CHUNK // columns, 1)
    parts = [_quantize_rows(rows[start : start + step], bits) for start in range(0, rows.shape[0], step)]
    codes, scales = (paddle.concat(list(found)) for found in zip(*parts, strict=True))
    return QuantizedWeight(codes.reshape(shapes[0]), scales.reshape(shapes[1]))


def dequantize(quantized: QuantizedWeight, dtype: paddle.dtype) -> Tensor:
    """The weight [..., N, K] in `dtype`."""
    form = _triton_dequantize if form_of("dequantize") == "triton" else _plain_dequantize
    return form(quantized, dtype)


def quantized_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """x [..., K] W^T + bias -> [..., N]. The backward pass dequantizes again instead of keeping W."""
    output: Tensor = _QuantizedLinear.apply(x, weight)
    return output if bias is None else output + bias


class _QuantizedLinear(paddle.autograd.PyLayer):
    """x W^T, with a gradient of x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedWeight) -> Tensor:
        ctx.weight = weight
        return paddle.matmul(x, dequantize(weight, x.dtype), transpose_y=True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return paddle.matmul(dy, dequantize(ctx.weight, dy.dtype))


def _plain_dequantize(quantized: QuantizedWeight, dtype: paddle.dtype) -> Tensor:
    codes = quantized.codes
    if quantized.bits == 4:
        low = paddle.bitwise_and(codes, paddle.full([], 15, "uint8"))
        high = paddle.bitwise_right_shift(codes, paddle.full([], 4, "uint8"))
        codes = paddle.stack([low, high], axis=-1).reshape(quantized.shape).astype(dtype) - 8
    groups = _grouped(codes.astype(dtype), GROUP_SIZES[quantized.bits])
    return _ungrouped(groups * quantized.scales.astype(dtype).unsqueeze(-1), quantized.shape[-1])


def _triton_dequantize(quantized: QuantizedWeight, dtype: paddle.dtype) -> Tensor:
    from erniekit.kernels.triton.quantize import dequantize

    codes, scales = quantized.codes.contiguous(), quantized.scales.contiguous()
    out = paddle.empty(quantized.shape, dtype)
    dequantize(pointer(codes), pointer(scales), pointer(out), group=GROUP_SIZES[quantized.bits])
    return out


def _quantize_rows(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix."""
    lowest = -(2 ** (bits - 1))
    groups = _grouped(rows.astype("float32"), GROUP_SIZES[bits])
    low, high = groups.min(axis=-1, keepdim=True), groups.max(axis=-1, keepdim=True)
    scales = (paddle.where(high > -low, high, low) / lowest).astype(rows.dtype)
    divisors = scales.astype("float32")
    divisors = paddle.where(divisors == 0, paddle.ones_like(divisors), divisors)
    codes = _ungrouped(paddle.clip(paddle.round(groups / divisors), lowest, -lowest - 1), rows.shape[1])
    if bits == 8:
        return codes.astype("int8"), scales.squeeze(-1)
    low, high = (codes - lowest).reshape([rows.shape[0], -1, 2]).unbind(-1)
    return (low + 16 * high).astype("uint8"), scales.squeeze(-1)


def _grouped(x: Tensor, group: int) -> Tensor:
    """[..., K] -> [..., groups, group], with zeros after the last column."""
    *outer, columns = x.shape
    if columns % group:
        x = paddle.concat([x, paddle.zeros([*outer, -columns % group], x.dtype)], axis=-1)
    return x.reshape([*outer, -1, group])


def _ungrouped(groups: Tensor, columns: int) -> Tensor:
    """[..., groups, group] -> [..., K]."""
    x = groups.flatten(-2)
    return x if x.shape[-1] == columns else x[..., :columns]
