"""Quantized weights: their codes, the error of a round trip, and a linear layer over them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor

from erniekit.errors import ConfigError
from erniekit.kernels import quantize as kernel
from erniekit.kernels.choice import use_forms
from erniekit.kernels.quantize import (
    GROUP_SIZES,
    QuantizedWeight,
    dequantize,
    quantize,
    quantized_linear,
    quantized_shapes,
)
from tests.closeness import assert_close, relative_difference
from tests.unit.kernels.forms import TRITON, assert_same_results, random

# Of normal numbers, by bits: norm of the error relative to that of the values, in full groups.
ERRORS = {8: 0.0067, 4: 0.098}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(3, 2, 256), (5, 130), (4, 2), (2, 3, 64)])
def test_round_trip(bits: int, shape: tuple[int, ...]) -> None:
    weight = random(*shape)
    quantized = quantize(weight, bits)
    assert (quantized.bits, quantized.shape) == (bits, list(shape))
    assert [quantized.codes.shape, quantized.scales.shape] == list(quantized_shapes(list(shape), bits))
    found = dequantize(quantized, "float32")
    assert found.shape == list(shape)
    scales = np.abs(scale_of_each_value(quantized))
    error = np.abs((found - weight).numpy())
    # Half a step; up to a whole one where the highest code, which is one short, is exceeded.
    clipped = weight.numpy() / scale_of_each_value(quantized) > 2 ** (bits - 1) - 1
    assert (error <= 1.001 * np.where(clipped, scales, scales / 2)).all()


@pytest.mark.parametrize("form", [TRITON])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(3, 11, 192), (5, 130), (1, 2)])
def test_every_form_dequantizes_alike(shape: tuple[int, ...], bits: int, form: str) -> None:
    quantized = quantize(random(*shape), bits)
    expected = dequantize(quantized, "float32")
    with use_forms(dequantize=form):
        assert (dequantize(quantized, "float32").numpy() == expected.numpy()).all()


def scale_of_each_value(quantized: QuantizedWeight) -> np.ndarray:
    scales = np.repeat(quantized.scales.numpy(), GROUP_SIZES[quantized.bits], -1)
    return scales[..., : quantized.shape[-1]]


@pytest.mark.parametrize("bits", [8, 4])
def test_error_of_normal_numbers(bits: int) -> None:
    weight = random(64, 512)
    error = relative_difference(dequantize(quantize(weight, bits), "float32"), weight)
    assert 0.9 * ERRORS[bits] < error < ERRORS[bits]


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_of_representable_numbers_are_exact(bits: int) -> None:
    """Every code in both halves of a byte, under scales of either sign."""
    lowest, columns = -(2 ** (bits - 1)), 2 * GROUP_SIZES[bits]
    codes = np.random.default_rng(0).integers(lowest, -lowest, (6, columns))
    codes[:, :: GROUP_SIZES[bits]] = lowest
    scales = np.array([[0.5, -2.0]] * 3 + [[-1.0, 0.25]] * 3)
    weight = (codes * np.repeat(scales, GROUP_SIZES[bits], 1)).astype("float32")
    quantized = quantize(paddle.to_tensor(weight), bits)
    assert (dequantize(quantized, "float32").numpy() == weight).all()
    assert (quantized.scales.numpy() == scales).all()
    if bits == 4:
        codes = codes[:, ::2] + 8 + 16 * (codes[:, 1::2] + 8)
    assert (quantized.codes.numpy() == codes).all()


def test_codes_are_computed_with_the_rounded_scale() -> None:
    weight = random(64, 256).astype("bfloat16")
    for bits, bound in ERRORS.items():
        quantized = quantize(weight, bits)
        assert quantized.scales.dtype == paddle.bfloat16
        values = dequantize(quantized, "float32")
        assert relative_difference(values, weight) < 1.01 * bound


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros(bits: int) -> None:
    assert not dequantize(quantize(paddle.zeros([2, 192]), bits), "float32").numpy().any()


def test_a_stack_is_quantized_in_parts_and_as_its_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random(3, 5, 70)
    whole = quantize(weight, 4)
    monkeypatch.setattr(kernel, "_CHUNK", 140)
    for found in (quantize(weight, 4), quantize(weight.unsqueeze(0), 4)):
        assert (found.codes.reshape(whole.codes.shape).numpy() == whole.codes.numpy()).all()
        assert (found.scales.reshape(whole.scales.shape).numpy() == whole.scales.numpy()).all()
    for number, matrix in enumerate(weight):
        assert (quantize(matrix, 4).codes.numpy() == whole.codes[number].numpy()).all()


def test_int4_with_an_odd_number_of_columns_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"shape \[2, 5\] has an odd number: use int8"):
        quantize(random(2, 5), 4)
    assert quantize(random(2, 5), 8).shape == [2, 5]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(bits: int, with_bias: bool) -> None:
    quantized = quantize(random(7, 66), bits)

    def composed(x: Tensor, *bias: Tensor) -> Tensor:
        y = paddle.matmul(x, dequantize(quantized, x.dtype), transpose_y=True)
        return y + bias[0] if bias else y

    inputs = [random(2, 3, 66, seed=1), random(7, seed=2)]
    assert_same_results(
        lambda x, *bias: quantized_linear(x, quantized, *bias), composed, inputs[: 1 + with_bias]
    )


def test_linear_keeps_no_dequantized_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def recorded(*arguments: Any) -> Tensor:
        made.append(dequantize(*arguments))
        return made[-1]

    monkeypatch.setattr(kernel, "dequantize", recorded)
    x, weight = random(3, 8), quantize(random(4, 8), 8)
    x.stop_gradient = False
    output = quantized_linear(x, weight)
    left = weakref.ref(made.pop())
    assert not output.stop_gradient and left() is None
    output.sum().backward()
    assert_close(x.grad, paddle.tile(made.pop().sum(0), [3, 1]))


def test_dequantizing_gives_the_dtype_that_is_asked_for() -> None:
    weight = QuantizedWeight(paddle.full([1, 2], -3, "int8"), paddle.full([1, 1], 0.5, "bfloat16"))
    for dtype in ("float32", "float64"):
        found = dequantize(weight, dtype)
        assert str(found.dtype).endswith(dtype) and found.tolist() == [[-1.5, -1.5]]
