"""Each fast form against the plain one, in values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import paddle
import pytest
from paddle import Tensor

from erniekit.models.attention import DocumentAttention, batched_attention
from tests.closeness import assert_close


def _gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[np.ndarray]:
    for tensor in inputs:
        tensor.stop_gradient = False
        tensor.clear_gradient()
    output = function(*inputs)
    weights = paddle.to_tensor(np.random.default_rng(1).standard_normal(output.shape).astype("float32"))
    (output * weights).sum().backward()
    return [output.numpy(), *(tensor.grad.numpy().copy() for tensor in inputs)]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape).astype("float32"))


def _assert_same(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)


def _naive(cu_seqlens: list[int], causal: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One mask over the whole row, keys and values repeated for their query heads."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        total, heads, width = query.shape
        document = np.searchsorted(cu_seqlens, np.arange(total), side="right")
        allowed = document[:, None] == document[None]
        if causal:
            allowed &= np.tril(np.ones((total, total), bool))
        repeats = heads // key.shape[1]
        q, k, v = (
            x.repeat_interleave(repeats if x.shape[1] != heads else 1, axis=1).transpose([1, 0, 2])
            for x in (query, key, value)
        )
        scores = paddle.matmul(q, k, transpose_y=True) / width**0.5
        scores = paddle.where(paddle.to_tensor(allowed), scores, paddle.full_like(scores, -1e30))
        return paddle.matmul(paddle.nn.functional.softmax(scores), v).transpose([1, 0, 2])

    return attend


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "lengths",
    [[7], [5, 5, 5], [30, 29, 3, 1, 28, 14], [1, 1, 1], [600, 40, 590]],
    ids=lambda lengths: "-".join(map(str, lengths)),
)
def test_documents_attend_to_themselves_only(lengths: list[int], causal: bool) -> None:
    cu_seqlens = np.cumsum([0, *lengths])
    total = int(cu_seqlens[-1])
    inputs = [_random(total, 4, 8), _random(total, 2, 8, seed=1), _random(total, 2, 8, seed=2)]
    attend = DocumentAttention(cu_seqlens.astype(np.int32), causal=causal, heads=4)
    fast = _gradients(lambda q, k, v: attend(0, q, k, v), inputs)
    _assert_same(fast, _gradients(_naive(cu_seqlens.tolist(), causal), inputs))


def test_batches_bound_the_scores_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erniekit.models.attention._MAX_SCORES", 4 * 10 * 10 * 2)
    attend = DocumentAttention(np.arange(0, 60, 10, dtype=np.int32), causal=True, heads=4)
    query, key = _random(50, 4, 8), _random(50, 2, 8, seed=1)
    output = attend(0, query, key, key)
    assert [group.documents for group in attend._plan[0]] == [2, 2, 1]
    alone = batched_attention(query[None, :10], key[None, :10], key[None, :10], causal=True)[0]
    assert_close(output[:10], alone)
