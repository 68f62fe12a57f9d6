"""The fused step of AdamW and norm of gradients, against the plain forms."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import Tensor

from erniekit.kernels.adamw import AdamWParameter, accumulate, adamw, squared_norm
from erniekit.kernels.choice import use_forms
from tests.closeness import BFLOAT16, assert_close
from tests.unit.kernels.forms import TRITON

# Shape, dtype, dtype of the gradient (None: no gradient), weight decay, ratio. A chunk has 16,384 elements.
CASES = [
    ((7, 5), "float32", "float32", 0.1, 1.0),
    ((150, 111), "bfloat16", "bfloat16", 0.1, 1.0),
    ((40,), "bfloat16", "float32", 0.0, 0.5),
    ((33,), "float32", None, 0.1, 1.0),
    ((16384,), "float32", "float32", 0.2, 0.25),
    ((1,), "bfloat16", None, 0.1, 2.0),
]


def _tensors() -> list[tuple[AdamWParameter, Tensor | None]]:
    rng = np.random.default_rng(0)
    tensors = []
    for shape, dtype, gradient_dtype, decay, ratio in CASES:
        value, moment1, moment2, gradient = (
            paddle.to_tensor(rng.standard_normal(shape).astype("float32")) for _ in range(4)
        )
        parameter = value.astype(dtype)
        master = None if dtype == "float32" else parameter.astype("float32")
        entry = AdamWParameter(parameter, ratio, decay, moment1, moment2.abs(), master)
        tensors.append((entry, None if gradient_dtype is None else gradient.astype(gradient_dtype)))
    return tensors


@pytest.mark.parametrize("form", [TRITON])
def test_step_and_norm(form: str) -> None:
    expected, found = _tensors(), _tensors()
    norms = []
    for name, tensors in (("plain", expected), (form, found)):
        with use_forms(adamw=name):
            norms.append(squared_norm([gradient for _, gradient in tensors if gradient is not None]))
            for step in (3, 4):
                adamw(tensors, 1e-2, step, betas=(0.9, 0.999), epsilon=1e-8, scale=1.0)
    assert_close(norms[1], norms[0])
    for (one, _), (other, _) in zip(found, expected, strict=True):
        assert_close(one.values, other.values)
        assert_close(one.moment1, other.moment1)
        assert_close(one.moment2, other.moment2)
        if one.master is not None:  # Triton's interpreter rounds to bfloat16 towards zero
            assert_close(one.parameter, one.master, 2 * BFLOAT16)


@pytest.mark.parametrize("form", ["plain", TRITON])
def test_a_scale_of_gradients(form: str) -> None:
    expected, found = _tensors(), _tensors()
    expected = [(entry, None if g is None else g.astype("float32") * 0.125) for entry, g in expected]
    with use_forms(adamw=form):
        adamw(expected, 1e-2, 1, betas=(0.9, 0.999), epsilon=1e-8)
        adamw(found, 1e-2, 1, betas=(0.9, 0.999), epsilon=1e-8, scale=0.125)
    for (one, _), (other, _) in zip(found, expected, strict=True):
        assert_close(one.values, other.values)
        assert_close(one.moment2, other.moment2)


@pytest.mark.parametrize("form", ["plain", TRITON])
def test_gradients_are_summed_in_float32(form: str) -> None:
    gradients = [g.astype("bfloat16") for _, g in _tensors() if g is not None]
    gradients.append(paddle.zeros([0], "bfloat16"))
    sums: list[Tensor | None] = [None] * len(gradients)
    with use_forms(adamw=form):
        assert accumulate([], []) == []
        first = accumulate(sums, gradients)
        sums = [first[0], None, *first[2:]]
        second = accumulate(sums, gradients)
    for index, (total, gradient) in enumerate(zip(second, gradients, strict=True)):
        assert total.dtype == paddle.float32
        assert index == 1 or total is sums[index]
        assert_close(total, gradient.astype("float32") * (1 if index == 1 else 2))


@pytest.mark.parametrize("form", ["plain", TRITON])
def test_norms_of_nothing_and_of_numbers_that_are_not_finite(form: str) -> None:
    with use_forms(adamw=form):
        assert squared_norm([]) == squared_norm([paddle.zeros([0])]) == 0.0
        assert np.isnan(squared_norm([paddle.ones([3]), paddle.to_tensor([1.0, float("nan")])]))
        assert np.isinf(squared_norm([paddle.to_tensor([1e30, 1.0])]))


@pytest.mark.parametrize("form", [TRITON])
def test_a_tensor_with_gaps_is_refused(form: str) -> None:
    paddle.set_flags({"FLAGS_use_stride_kernel": True})
    try:
        (entry, gradient), *_ = _tensors()
        entry.moment1 = entry.moment1.t()
        with use_forms(adamw=form), pytest.raises(ValueError, match="contiguous"):
            adamw([(entry, gradient)], 1e-2, 1, betas=(0.9, 0.999), epsilon=1e-8)
        # Gradients are copied.
        (entry, gradient), *_ = _tensors()
        transposed = paddle.to_tensor(gradient.numpy().T.copy()).t()
        assert not transposed.is_contiguous()
        with use_forms(adamw=form):
            assert_close(squared_norm([transposed]), squared_norm([gradient]))
            adamw([(entry, transposed)], 1e-2, 1, betas=(0.9, 0.999), epsilon=1e-8)
        (other, _), *_ = _tensors()
        adamw([(other, gradient)], 1e-2, 1, betas=(0.9, 0.999), epsilon=1e-8)
        assert_close(entry.values, other.values)
    finally:
        paddle.set_flags({"FLAGS_use_stride_kernel": False})
