"""Every loss against a float64 oracle: values, and gradients by central differences of the oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
import pytest

from erniekit.config.choices import PER_TOKEN, REFERENCE_FREE, DpoLoss
from erniekit.objectives.preference import (
    PairLogps,
    PreferenceSettings,
    preference_loss,
)
from tests.closeness import assert_close

Oracle = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, PreferenceSettings], np.ndarray]
CHOSEN = np.array([-12.0, -3.5, -40.0, -7.25, -0.5])
REJECTED = np.array([-15.0, -2.0, -41.5, -7.0, -9.0])
REFERENCE_CHOSEN = np.array([-11.0, -4.0, -45.0, -7.5, -2.0])
REFERENCE_REJECTED = np.array([-13.0, -3.0, -38.0, -7.125, -8.0])
TOKENS = np.array([4.0, 2.0, 11.0, 3.0, 1.0]), np.array([5.0, 1.0, 9.0, 2.0, 6.0])


def s(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _advantage(c: np.ndarray, r: np.ndarray, C: np.ndarray, R: np.ndarray) -> np.ndarray:
    return (c - C) - (r - R)


def sigmoid(c, r, C, R, p):  # type: ignore[no-untyped-def]
    x = p.beta * _advantage(c, r, C, R)
    return -(1 - p.label_smoothing) * np.log(s(x)) - p.label_smoothing * np.log(s(-x))


def robust(c, r, C, R, p):  # type: ignore[no-untyped-def]
    x, e = p.beta * _advantage(c, r, C, R), p.label_smoothing
    return (-(1 - e) * np.log(s(x)) + e * np.log(s(-x))) / (1 - 2 * e)


def hinge(c, r, C, R, p):  # type: ignore[no-untyped-def]
    return np.maximum(0, 1 - p.beta * _advantage(c, r, C, R))


def ipo(c, r, C, R, p):  # type: ignore[no-untyped-def]
    return (_advantage(c, r, C, R) - 1 / (2 * p.beta)) ** 2


def simpo(c, r, C, R, p):  # type: ignore[no-untyped-def]
    x, e = p.beta * (c - r) - p.simpo_gamma, p.label_smoothing
    return -(1 - e) * np.log(s(x)) - e * np.log(s(-x))


def orpo(c, r, C, R, p):  # type: ignore[no-untyped-def]
    odds_chosen, odds_rejected = (np.exp(x) / (1 - np.exp(x)) for x in (c, r))
    return -p.beta * np.log(s(np.log(odds_chosen / odds_rejected)))


def dpop(c, r, C, R, p):  # type: ignore[no-untyped-def]
    penalty = np.maximum(0, C - c)
    return -np.log(s(p.beta * (_advantage(c, r, C, R) - p.dpop_lambda * penalty)))


def apo_zero(c, r, C, R, p):  # type: ignore[no-untyped-def]
    return 1 - s(p.beta * (c - C)) + s(p.beta * (r - R))


def apo_down(c, r, C, R, p):  # type: ignore[no-untyped-def]
    return s(p.beta * (c - C)) + 1 - s(p.beta * _advantage(c, r, C, R))


def kto_pair(c, r, C, R, p):  # type: ignore[no-untyped-def]
    # The divergences are constants: of the values at hand, not of what the differences move.
    k_chosen, k_rejected = max(0, (CHOSEN - C).mean()), max(0, (REJECTED - R).mean())
    return ((1 - s(p.beta * (c - C - k_rejected))) + (1 - s(p.beta * (k_chosen - (r - R))))) / 2


ORACLES: dict[str, Oracle] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "hinge": hinge,
    "ipo": ipo,
    "simpo": simpo,
    "orpo": orpo,
    "dpop": dpop,
    "kto_pair": kto_pair,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
}


def _pairs(*values: np.ndarray, free: bool = False) -> PairLogps:
    chosen, rejected, *reference = (paddle.to_tensor(value.astype(np.float32)) for value in values)
    chosen.stop_gradient = rejected.stop_gradient = False
    return PairLogps(chosen, rejected) if free else PairLogps(chosen, rejected, *reference)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("name", ORACLES)
def test_value_and_gradient(name: str, beta: float, smoothing: float) -> None:
    settings = PreferenceSettings(name, beta, smoothing, simpo_gamma=0.4, dpop_lambda=3.0)  # type: ignore[arg-type]
    values = [CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED]
    if name == "orpo":
        values = [value / 50 for value in values]
    pairs = _pairs(*values, free=name in REFERENCE_FREE)
    losses = preference_loss(pairs, settings)
    oracle = ORACLES[name]
    assert_close(losses, oracle(*values, settings))
    losses.sum().backward()
    step = 1e-6
    for place, tensor in enumerate((pairs.chosen, pairs.rejected)):
        up, down = (
            [value + sign * step * (index == place) for index, value in enumerate(values)] for sign in (1, -1)
        )
        expected = (oracle(*up, settings) - oracle(*down, settings)) / (2 * step)
        assert_close(tensor.grad, expected)


def test_every_loss_has_an_oracle_and_the_right_inputs() -> None:
    from typing import get_args

    assert set(ORACLES) == set(get_args(DpoLoss))
    assert set(REFERENCE_FREE) <= set(PER_TOKEN)


def test_per_token_divides_policy_and_reference() -> None:
    pairs = _pairs(CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)
    a, b = pairs.per_token(*(paddle.to_tensor(t.astype(np.float32)) for t in TOKENS)).ratios
    assert_close(a, (CHOSEN - REFERENCE_CHOSEN) / TOKENS[0])
    assert_close(b, (REJECTED - REFERENCE_REJECTED) / TOKENS[1])


@pytest.mark.parametrize("name", ORACLES)
def test_far_values_stay_finite(name: str) -> None:
    far = np.array([-1e4, -0.0, -5e3])
    pairs = _pairs(far, far[::-1].copy(), far * 0.5, far * 0.5, free=name in REFERENCE_FREE)
    losses = preference_loss(pairs, PreferenceSettings(name, 0.5))  # type: ignore[arg-type]
    losses.sum().backward()
    assert np.isfinite(losses.numpy()).all()
    assert np.isfinite(pairs.chosen.grad.numpy()).all()


def test_at_the_reference_dpo_is_log_two() -> None:
    pairs = _pairs(CHOSEN, REJECTED, CHOSEN, REJECTED)
    assert_close(preference_loss(pairs, PreferenceSettings()), np.full(len(CHOSEN), np.log(2)))
