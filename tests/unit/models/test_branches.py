"""Attention with branches against a softmax over an explicit mask: both forms, values and gradients."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import paddle
import pytest

from erniekit.models.branches import BranchAttention
from tests.closeness import assert_close

ROWS = {
    "one": ([0, 9], [[3, 6]]),
    "equal prompts": ([0, 12, 23, 40], [[4, 8], [16, 19], [27, 29]]),
    "long": ([0, 700, 720], [[290, 300], [705, 712]]),
    "nothing shared": ([0, 7, 12], [[0, 3], [7, 9]]),
    "some shared": ([0, 7, 12], [[0, 3], [8, 9]]),
    "no branches": ([0, 4, 9], []),
}


def mask_of(bounds: list[int], branches: list[list[int]]) -> np.ndarray:
    """bool [T, T]: which query sees which key."""
    seen = np.zeros((bounds[-1], bounds[-1]), bool)
    for number, (start, end) in enumerate(pairwise(bounds)):
        seen[start:end, start:end] = np.tri(end - start, dtype=bool)
        if branches:
            first, second = branches[number]
            seen[second:end, first:second] = False
    return seen


def plain(query: paddle.Tensor, key: paddle.Tensor, value: paddle.Tensor, seen: np.ndarray) -> paddle.Tensor:
    group = query.shape[1] // key.shape[1]
    k, v = (paddle.repeat_interleave(x, group, axis=1).transpose([1, 0, 2]) for x in (key, value))
    q = query.transpose([1, 0, 2]) * query.shape[-1] ** -0.5
    scores = paddle.matmul(q, k, transpose_y=True) + paddle.to_tensor(
        np.where(seen, 0.0, -1e30).astype(np.float32)
    )
    return paddle.matmul(paddle.nn.functional.softmax(scores, axis=-1), v).transpose([1, 0, 2])


FORMS = [
    (name, form)
    for name in ROWS
    for form in ("__call__", "squares", "rectangles")
    if form == "__call__" or name not in ("nothing shared", "no branches")  # which are plain documents
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_against_a_mask(name: str, form: str) -> None:
    bounds, branches = ROWS[name]
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((bounds[-1], heads, 8)).astype(np.float32) for heads in (4, 2, 2)]
    weight = paddle.to_tensor(rng.standard_normal((bounds[-1], 4, 8)).astype(np.float32))
    branched = np.array(branches, np.int32).reshape(-1, 2)
    attention = BranchAttention(np.array(bounds, np.int32), branched, heads=4)
    results = []
    for attend in (
        lambda q, k, v: getattr(attention, form)(0, q, k, v),
        lambda q, k, v: plain(q, k, v, mask_of(bounds, branches)),
    ):
        inputs = [paddle.to_tensor(x, stop_gradient=False) for x in values]
        output = attend(*inputs)
        (output * weight).sum().backward()
        results.append([output.numpy(), *(x.grad.numpy() for x in inputs)])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected)
