"""Every form of RMSNorm against its formula."""

from __future__ import annotations

from collections.abc import Iterator

import paddle
import paddle.nn.functional as F
import pytest
from paddle import Tensor

from erniekit.kernels.choice import use_forms
from erniekit.kernels.rms_norm import add_rms_norm, plain_rms_norm, rms_norm
from tests.unit.kernels.forms import TRITON, assert_same_results, random

EPS = 1e-3
SIZES = [(1, 1), (37, 24), (5, 130), (0, 8)]


@pytest.fixture(params=["plain", "cpu", "paddle", TRITON])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    # Paddle's own has no kernel for CPUs: it gives the output and the inverse of the root mean square.
    monkeypatch.setattr(F, "rms_norm", lambda x, shape, w, eps: (plain_rms_norm(x, w, eps), x[:, 0]))
    with use_forms(rms_norm=request.param):
        yield request.param


def _formula(x: Tensor, weight: Tensor) -> Tensor:
    return x / paddle.sqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


@pytest.mark.parametrize("sizes", SIZES)
def test_norm(form: str, sizes: tuple[int, int]) -> None:
    inputs = [random(*sizes), random(sizes[1], seed=1)]
    assert_same_results(lambda x, w: rms_norm(x, w, EPS), _formula, inputs)


@pytest.mark.parametrize("sizes", SIZES)
def test_norm_of_a_sum(form: str, sizes: tuple[int, int]) -> None:
    inputs = [random(*sizes), random(*sizes, seed=1), random(sizes[1], seed=2)]
    assert_same_results(
        lambda x, r, w: add_rms_norm(x, r, w, EPS), lambda x, r, w: (x + r, _formula(x + r, w)), inputs
    )


def test_only_the_norm_or_only_the_sum_is_used(form: str) -> None:
    inputs = [random(6, 8), random(6, 8, seed=1), random(8, seed=2)]
    assert_same_results(
        lambda x, r, w: add_rms_norm(x, r, w, EPS)[1], lambda x, r, w: _formula(x + r, w), inputs
    )
    assert_same_results(
        lambda x, r, w: add_rms_norm(x, r, w, EPS)[0] + 0 * w, lambda x, r, w: x + r + 0 * w, inputs
    )


def test_the_weight_gradient_is_summed_over_more_rows_than_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("erniekit.kernels.triton.rms_norm.PROGRAMS", 3)
    with use_forms(rms_norm="triton"):
        assert_same_results(lambda x, w: rms_norm(x, w, EPS), _formula, [random(11, 40), random(40, seed=1)])


@pytest.mark.parametrize("trained", [0, 1, 2])
def test_only_what_trains_gets_a_gradient(form: str, trained: int) -> None:
    for function, inputs in (
        (rms_norm, [random(5, 8), random(8, seed=1)]),
        (add_rms_norm, [random(5, 8), random(5, 8, seed=2), random(8, seed=1)]),
    ):
        if trained == len(inputs):
            continue
        inputs[trained].stop_gradient = False
        outputs = function(*inputs, EPS)
        (outputs[1] if isinstance(outputs, tuple) else outputs).sum().backward()
        assert [x.grad is not None for x in inputs] == [x is inputs[trained] for x in inputs]
