"""Values of the element types of safetensors in numpy: bfloat16 is uint16 there."""

from __future__ import annotations

from typing import Any

import numpy as np

from erniekit.checkpoint.header import NUMPY_TYPES

_BLOCK = 1 << 20
# Unsigned integers of an element type, and infinity among them. Of float64, the first number that is infinity in
# float32, through which all values pass.
_INFINITY: dict[str, tuple[Any, int]] = {
    "F64": (np.uint64, int(np.float64(2.0**128 - 2.0**103).view(np.uint64))),
    "F32": (np.uint32, 0xFF << 23),
    "F16": (np.uint16, 0x1F << 10),
    "BF16": (np.uint16, 0xFF << 7),
}
_FINITE_BLOCK = 1 << 17  # elements that stay in the processor's cache


def is_finite(array: np.ndarray, dtype: str) -> bool:
    """Whether an array of element type `dtype` holds no NaN, no infinity, and nothing that is infinity in float32.

    Those have all bits of the exponent set, so that the largest magnitude is compared as an integer: a third of the
    time of `numpy.isfinite`, and bfloat16 need not be widened.
    """
    if dtype not in _INFINITY or not array.size:
        return True
    kind, infinity = _INFINITY[dtype]
    bits = np.ascontiguousarray(array).reshape(-1).view(kind)
    magnitudes = np.empty(min(bits.size, _FINITE_BLOCK), kind)
    for start in range(0, bits.size, _FINITE_BLOCK):
        block = bits[start : start + _FINITE_BLOCK]
        part = np.bitwise_and(block, np.iinfo(kind).max >> 1, out=magnitudes[: block.size])
        if part.max() >= infinity:
            return False
    return True


def bfloat16_to_float32(array: np.ndarray) -> np.ndarray:
    """Widen bfloat16 (uint16) to float32; exact."""
    wide = np.zeros((*array.shape, 2), np.uint16)
    wide[..., 1] = array
    return wide.view(np.float32)[..., 0]


def float32_to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Narrow float32 to bfloat16 (uint16), round to nearest even. NaN stays NaN."""
    source = np.ascontiguousarray(array, np.float32).reshape(-1)
    result = np.empty(source.shape, np.uint16)
    # In blocks, so that temporaries are small compared to a large tensor.
    for start in range(0, source.size, _BLOCK):
        values = source[start : start + _BLOCK]
        bits = values.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        result[start : start + _BLOCK] = np.where(np.isnan(values), 0x7FC0, rounded)
    return result.reshape(array.shape)


def as_dtype(array: np.ndarray, source: str, target: str) -> np.ndarray:
    """Convert between the floating element types of safetensors ("F32", "BF16", "F16")."""
    if source == target:
        return array
    wide = bfloat16_to_float32(array) if source == "BF16" else array.astype(np.float32, copy=False)
    if target == "BF16":
        return float32_to_bfloat16(wide)
    return wide.astype(NUMPY_TYPES[target], copy=False)
