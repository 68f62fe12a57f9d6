"""Comparing a form of a kernel with a formula, in values and gradients."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np
import paddle
import pytest
from paddle import Tensor

from tests.closeness import assert_close

TRITON = pytest.param(
    "triton",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(
            not (importlib.util.find_spec("triton") and importlib.util.find_spec("torch")),
            reason="Triton's interpreter needs triton and torch: pip install -e '.[dev]'",
        ),
    ],
)
"""The Triton form, in Triton's interpreter (tests/conftest.py). Slow: not in `make test-fast`."""

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal float32 numbers."""
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape).astype("float32"))


def assert_same_results(actual: Function, expected: Function, inputs: Sequence[Tensor]) -> None:
    """Outputs, and gradients of all inputs, of `actual` as those of `expected` over the same inputs in float64."""
    found = _results(actual, inputs, "float32")
    wanted = _results(expected, inputs, "float64")
    assert len(found) == len(wanted)
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert_close(one, other, what=f"result {number}")


def _results(function: Function, inputs: Sequence[Tensor], dtype: str) -> list[np.ndarray]:
    copies = [tensor.detach().astype(dtype) for tensor in inputs]
    for copy in copies:
        copy.stop_gradient = False
    outputs = function(*copies)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [random(*output.shape, seed=9 + number) for number, output in enumerate(outputs)]
    total = sum((output * w.astype(dtype)).sum() for output, w in zip(outputs, weights, strict=True))
    total.backward()
    return [tensor.numpy() for tensor in (*outputs, *(copy.grad for copy in copies))]
