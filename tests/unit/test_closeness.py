"""What the comparison of floats takes as the same, and what not."""

import numpy as np
import pytest

from tests.closeness import FLOAT32, assert_all_close, assert_close, relative_difference

VALUES = np.random.default_rng(0).standard_normal((40, 30))


def test_one_element_may_differ_by_more_than_all_do() -> None:
    other = VALUES.copy()
    other[3, 4] += 1e-4  # of a norm of 35
    assert_close(other, VALUES)
    assert relative_difference(other, VALUES) < FLOAT32


@pytest.mark.parametrize("change", [1e-4, -1e-4, np.nan, np.inf])
def test_what_is_further_away_fails(change: float) -> None:
    with pytest.raises(AssertionError, match="weights: differs by"):
        assert_close(VALUES * (1 + change), VALUES, what="weights")
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(3.0 * (1 + change), 3.0)


def test_shapes_and_zeros() -> None:
    with pytest.raises(AssertionError, match=r"shape \(30, 40\), expected \(40, 30\)"):
        assert_close(VALUES.T, VALUES)
    assert_close([0.0, 0.0], [0.0, 0.0])
    for scale, passes in ((0.0, False), (1e-6, False), (1.0, True)):
        if passes:
            assert_close([1e-9], [0.0], scale=scale)
        else:
            with pytest.raises(AssertionError):
                assert_close([1e-9 + scale], [0.0], scale=scale)


def test_small_gradients_have_the_rounding_of_large_ones_and_no_more() -> None:
    gradients = {"large": np.ones(100), "small": np.full(100, 1e-6)}
    assert_all_close({"large": gradients["large"], "small": np.full(100, 1.05e-6)}, gradients)
    with pytest.raises(AssertionError, match="small: differs"):
        assert_all_close({"large": gradients["large"], "small": np.full(100, 2e-6)}, gradients)
    with pytest.raises(AssertionError, match="large: differs"):
        assert_all_close({"large": np.full(100, 1.001), "small": gradients["small"]}, gradients)
    with pytest.raises(AssertionError):
        assert_all_close({"large": gradients["large"]}, gradients)
