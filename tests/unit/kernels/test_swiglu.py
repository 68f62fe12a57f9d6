"""Every form of SwiGLU against its formula."""

from __future__ import annotations

import paddle
import pytest
from paddle import Tensor

from erniekit.kernels.choice import use_forms
from erniekit.kernels.swiglu import swiglu
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
