"""Quantizing weights one tensor of the Hub at a time, and the error that this makes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import paddle
from paddle import Tensor

from erniekit.checkpoint.hub import NUMPY_TYPES, spec_bytes
from erniekit.config.choices import Quantize
from erniekit.kernels.quantize import QuantizedWeight, dequantize, quantize, quantized_shapes
from erniekit.models.specs import TensorSpec, is_quantized_tensor

BITS: Mapping[Quantize, int] = {"int8": 8, "int4": 4}


class Quantizer:
    """Quantizes to `bits`, 8 or 4, and sums up the errors of all measured weights.

    sums: float64 [2], the sums of the squared changes and of the squared weights, which can be added over processes.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._sums = paddle.zeros([2], "float64")

    @property
    def sums(self) -> np.ndarray:
        """On the host."""
        sums: np.ndarray = self._sums.numpy()
        return sums

    def __call__(self, weight: Tensor) -> QuantizedWeight:
        """Codes and scales of a matrix [out, in]."""
        return quantize(weight, self.bits)

    def measure(self, weight: Tensor, quantized: QuantizedWeight) -> None:
        """Add a matrix to the sums, which stay on the device."""
        wide = weight.astype("float32")
        change = wide - dequantize(quantized, "float32")
        squares = [paddle.square(values).sum(dtype="float64") for values in (change, wide)]
        self._sums = self._sums + paddle.stack(squares)


def make_quantizer(choice: Quantize) -> Quantizer | None:
    """A quantizer for `model.quantize`; None for "none"."""
    return None if choice == "none" else Quantizer(BITS[choice])


def relative_error(sums: np.ndarray) -> float:
    """||W - Q(W)|| / ||W|| from the sums of quantizers."""
    return math.sqrt(sums[0] / sums[1]) if sums[1] else 0.0


def stored_bytes(spec: TensorSpec, choice: Quantize) -> int:
    """Bytes of a tensor in a model with `model.quantize`."""
    if choice == "none" or not is_quantized_tensor(spec.name):
        return spec_bytes(spec)
    codes, scales = quantized_shapes(list(spec.shape), BITS[choice])
    return math.prod(codes) + math.prod(scales) * np.dtype(NUMPY_TYPES[spec.dtype]).itemsize
