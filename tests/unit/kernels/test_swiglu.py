"""Every form of SwiGLU against its formula."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import Tensor

from erniekit.kernels.choice import use_forms
from erniekit.kernels.swiglu import plain_swiglu_backward, swiglu
from tests.closeness import assert_close
from tests.unit.kernels.forms import TRITON, assert_same_results, random

# Paddle's own has a kernel for CPUs too.
FORMS = ["plain", "paddle", TRITON]
SIZES = [(1, 1), (13, 30), (3, 600), (0, 4)]


def _formula(gate: Tensor, up: Tensor) -> Tensor:
    return gate / (1 + paddle.exp(-gate)) * up


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_two_tensors_and_the_halves_of_one(form: str, sizes: tuple[int, int]) -> None:
    rows, width = sizes
    if form == "paddle" and not rows:
        pytest.skip("Paddle's kernel for CPUs takes no empty tensors")
    with use_forms(swiglu=form):
        assert_same_results(swiglu, _formula, [random(rows, width), random(rows, width, seed=1)])
        assert_same_results(
            swiglu, lambda x: _formula(x[:, :width], x[:, width:]), [random(rows, 2 * width, seed=2)]
        )


@pytest.mark.parametrize("trained", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_one_of_two_may_train(form: str, trained: int) -> None:
    inputs = random(4, 6), random(4, 6, seed=1)
    inputs[trained].stop_gradient = False
    with use_forms(swiglu=form):
        swiglu(*inputs).sum().backward()
    assert [x.grad is not None for x in inputs] == [x is inputs[trained] for x in inputs]


@pytest.mark.parametrize("form", FORMS)
def test_gates_far_below_zero_have_no_gradient(form: str) -> None:
    """Paddle's gradient of silu on CPU is NaN there."""
    gates = np.array([[-1000, -100, -89, -88, -87, -80, -20, 0, 20, 100]], np.float32)
    sigmoid = np.exp(np.minimum(gates, 0)) / (1 + np.exp(-np.abs(gates)))
    expected = sigmoid * (1 + gates * (1 - sigmoid))
    gate, up = paddle.to_tensor(gates, stop_gradient=False), paddle.ones([1, 10])
    with use_forms(swiglu=form):
        swiglu(gate, up).sum().backward()
    assert_close(gate.grad, expected)
    found = plain_swiglu_backward(paddle.to_tensor(gates), up, up)
    assert_close(found[0], expected)
    assert_close(found[1], gates * sigmoid)
    assert_close(found[2], gates * sigmoid)
