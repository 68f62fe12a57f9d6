"""Comparison of floats: by the norm over a tensor, within what a computation promises in its precision.

Processors, numbers of threads and lengths of rows choose different kernels, which add in different orders. So
one element, whose terms may cancel, promises nothing; the norm of the difference over a whole tensor does.
Values of the same kernels over the same inputs in one process are compared exactly, without this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# What the norm of an error may be, relative to the norm of the values. The unit of float32 is 6e-8; a mistake is
# far above all of these.
FLOAT64 = 1e-9
"""A formula in float64, and the mean of a few such values."""
FLOAT32 = 1e-5
"""A kernel, a loss, a mean over tokens in float32; a gradient by differences in float64. Some 100 units."""
MODEL = 1e-4
"""What a whole model makes in float32: its logits, its gradients, weights after some steps with them."""
BFLOAT16 = 2.0**-8
"""One rounding to bfloat16, which has 8 bits."""

# Rounding in the gradients of a model is that of the large ones, which the small ones are made from.
_SMALLEST = 1e-3


def assert_close(
    actual: Any, expected: Any, relative: float = FLOAT32, *, scale: float = 0.0, what: str = ""
) -> None:
    """Norm of `actual - expected` within `relative` of the norm of `expected`, or of `scale` if that is more.

    Both are numbers, lists, arrays or tensors, of the same shape. scale: where the values are small differences
    of large ones, the norm of the large ones.
    """
    found, wanted = _array(actual), _array(expected)
    assert found.shape == wanted.shape, f"{what}: shape {found.shape}, expected {wanted.shape}"
    error, norm = float(np.linalg.norm(found - wanted)), float(np.linalg.norm(wanted))
    allowed = relative * max(norm, scale)
    assert error <= allowed, (  # not for NaN
        f"{what}: differs by {error:.3g} in norm, {error / max(norm, scale, 1e-300):.3g} of {max(norm, scale):.3g}; "
        f"allowed is {relative:.3g}\n  actual   {_begin(found)}\n  expected {_begin(wanted)}"
    )


def assert_all_close(
    actual: Mapping[str, Any], expected: Mapping[str, Any], relative: float = MODEL, *, what: str = ""
) -> None:
    """Each tensor of a model close to the one of its name; those much smaller than the largest, for its size."""
    assert actual.keys() == expected.keys(), what
    norms = [float(np.linalg.norm(_array(value))) for value in expected.values()]
    for name, value in expected.items():
        assert_close(
            actual[name], value, relative, scale=_SMALLEST * max(norms), what=f"{what} {name}".strip()
        )


def relative_difference(one: Any, other: Any) -> float:
    """Norm of the difference, relative to the norm of the second: for values that must not be the same."""
    return float(np.linalg.norm(_array(one) - _array(other)) / np.linalg.norm(_array(other)))


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "numpy"):  # a tensor of Paddle, which tests of data do not load
        values = values.astype("float64").numpy()
    return np.asarray(values, np.float64)


def _begin(values: np.ndarray) -> str:
    return " ".join(f"{value:.7g}" for value in values.reshape(-1)[:6]) + (" ..." if values.size > 6 else "")
