"""Sorted and weighted in one go, tokens have the outputs and gradients of the plain sums over their experts."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import Tensor

from erniekit.kernels.grouped_gemm import ExpertRows
from erniekit.moe.config import MoeConfig
from erniekit.moe.dispatch import LocalDispatcher
from erniekit.moe.experts import Experts
from erniekit.moe.router import Routing
from tests.closeness import assert_close

HIDDEN, EXPERTS = 6, 5
MOE = MoeConfig(EXPERTS, 2, (4,), 0, 1e-12, (0,))
# Experts of each token; nobody chooses expert 3.
CHOSEN = {
    "two of five": [[4, 0], [1, 2], [0, 4], [4, 1], [2, 0], [0, 1], [4, 2]],
    "all to the same": [[1, 4]] * 4,
    "one each": [[2], [0], [4]],
}


def make_experts() -> Experts:
    experts = Experts(HIDDEN, MOE, "float32")
    rng = np.random.default_rng(2)
    for parameter in experts.parameters():
        parameter.set_value(paddle.to_tensor(rng.standard_normal(parameter.shape).astype(np.float32)))
    return experts


def make_inputs(chosen: list[list[int]]) -> tuple[Tensor, Routing]:
    rng = np.random.default_rng(3)
    x = paddle.to_tensor(rng.standard_normal((len(chosen), HIDDEN)).astype(np.float32), stop_gradient=False)
    weights = rng.random(np.shape(chosen)).astype(np.float32)
    experts, parts = paddle.to_tensor(chosen), paddle.to_tensor(weights, stop_gradient=False)
    return x, Routing(experts, parts, (len(chosen),))


def plain(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """Every expert over every token, weighted with what the token gives it."""
    total = paddle.zeros_like(x)
    for number in range(EXPERTS):
        weight = (routing.weights * (routing.experts == number).astype("float32")).sum(-1, keepdim=True)
        total = total + experts(x, [ExpertRows.of([len(x) * (e == number) for e in range(EXPERTS)])]) * weight
    return total


@pytest.mark.parametrize("case", CHOSEN)
def test_values_and_gradients_are_those_of_plain_sums(case: str) -> None:
    found = []
    for sorted_ in (False, True):
        experts = make_experts()
        x, routing = make_inputs(CHOSEN[case])
        if sorted_:
            output, counts = LocalDispatcher()(x, routing, EXPERTS, experts, lambda x=x: x * 3)
            assert counts.tolist() == np.bincount(np.ravel(CHOSEN[case]), minlength=EXPERTS).tolist()
        else:
            output = plain(x, routing, experts) + x * 3
        (output * output).sum().backward()
        gradients = [x.grad, routing.weights.grad]
        gradients += [parameter.grad for parameter in experts.parameters()]
        found.append([output.numpy(), *(gradient.numpy() for gradient in gradients)])
    for expected, actual in zip(*found, strict=True):
        assert_close(actual, expected)


def test_frozen_experts_pass_gradients_on_and_keep_none() -> None:
    experts = make_experts()
    for parameter in experts.parameters():
        parameter.stop_gradient = True
    x, routing = make_inputs(CHOSEN["two of five"])
    LocalDispatcher()(x, routing, EXPERTS, experts)[0].sum().backward()
    assert x.grad.numpy().any()
    assert routing.weights.grad.numpy().any()
    assert all(parameter.grad is None for parameter in experts.parameters())
