"""Every form of the rotation of channels against its formula."""

from __future__ import annotations

import paddle
import pytest
from paddle import Tensor

from erniekit.kernels.choice import use_forms
from erniekit.kernels.rope import rotate_halves, rotate_pairs
from tests.unit.kernels.forms import TRITON, assert_same_results, random

FORMS = ["plain", "cpu", TRITON]
# Tokens, heads, key heads, channels of a head.
SIZES = [(13, 6, 1, 10), (3, 1, 1, 2), (7, 9, 4, 16), (0, 2, 1, 4)]


def _rotate(first: Tensor, second: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    cosine, sine = paddle.cos(angles.astype(first.dtype)), paddle.sin(angles.astype(first.dtype))
    return first * cosine - second * sine, second * cosine + first * sine


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_neighbouring_channels(form: str, sizes: tuple[int, int, int, int]) -> None:
    tokens, heads, kv_heads, width = sizes
    angles = random(tokens, width // 2)
    rotation = paddle.stack([paddle.cos(angles), paddle.sin(angles)], -1)

    def formula(*tensors: Tensor) -> tuple[Tensor, ...]:
        pairs = (_rotate(x[..., ::2], x[..., 1::2], angles.unsqueeze(1)) for x in tensors)
        return tuple(paddle.stack(pair, -1).flatten(-2) for pair in pairs)

    inputs = [random(tokens, heads, width, seed=1), random(tokens, kv_heads, width, seed=2)]
    with use_forms(rope=form):
        assert_same_results(lambda q, k: rotate_pairs(q, k, rotation), formula, inputs)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_halves(form: str, sizes: tuple[int, int, int, int]) -> None:
    tokens, heads, _, width = sizes
    angles = random(tokens, 1, width // 2)
    half = width // 2
    with use_forms(rope=form):
        assert_same_results(
            lambda x: rotate_halves(x, paddle.cos(angles), paddle.sin(angles)),
            lambda x: paddle.concat(_rotate(x[..., :half], x[..., half:], angles), -1),
            [random(tokens, heads, width, seed=1)],
        )


@pytest.mark.parametrize("trained", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_queries_or_keys_alone_may_train(form: str, trained: int) -> None:
    inputs = random(4, 2, 6), random(4, 1, 6, seed=1)
    inputs[trained].stop_gradient = False
    with use_forms(rope=form):
        query, key = rotate_pairs(*inputs, random(4, 3, 2, seed=2))
        (query.sum() + key.sum()).backward()
    assert [x.grad is not None for x in inputs] == [x is inputs[trained] for x in inputs]
