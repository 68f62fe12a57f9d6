"""Stand-ins for Paddle's fused attention, which only GPUs have: the mask as their definition says, and softmax."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import paddle
import pytest
from paddle import Tensor

from erniekit.kernels.choice import use_forms


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Puts the stand-ins in place, for float32 too, and gives the names of the calls."""
    record: list[str] = []

    def flashmask(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *, causal: bool) -> Tensor:
        record.append("flashmask")
        return _flashmask(query, key, value, bounds, causal)

    def flash(*arguments: object, causal: bool) -> tuple[Tensor, None]:
        record.append("flash")
        return _flash(*arguments, causal=causal), None  # type: ignore[arg-type]

    monkeypatch.setattr("paddle.nn.functional.flashmask_attention", flashmask)
    monkeypatch.setattr("paddle.nn.functional.flash_attention.flash_attn_unpadded", flash)
    monkeypatch.setattr("erniekit.kernels.attention._FUSED_TYPES", (paddle.float32,))
    yield record


@pytest.fixture(params=["flashmask", "flash"])
def fused(request: pytest.FixtureRequest, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Attention in one of the fused forms; buckets are small."""
    monkeypatch.setattr("erniekit.models.attention._FREE_BLOCKS", 0)
    with use_forms(attention=request.param):
        yield request.param


def _flashmask(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, causal: bool) -> Tensor:
    batch, tokens, heads, width = query.shape
    _check_heads(heads, key.shape[2], width)
    assert key.shape == value.shape == [batch, tokens, key.shape[2], width]
    assert bounds.dtype == paddle.int32
    assert bounds.shape == [1, 1, tokens, 1 if causal else 2]
    hidden = np.zeros((tokens, tokens), bool)  # [query, key]
    for column, (start, *end) in enumerate(bounds.numpy()[0, 0].tolist()):
        hidden[start:, column] = True
        hidden[: column if causal else end[0], column] = True
    assert not hidden.all(1).any(), "a query that sees no key"
    return _softmax(query[0], key[0], value[0], ~hidden, width**-0.5).unsqueeze(0)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    longest_q: int,
    longest_k: int,
    scale: float,
    causal: bool,
) -> Tensor:
    tokens, heads, width = query.shape
    _check_heads(heads, key.shape[1], width)
    assert key.shape == value.shape == [tokens, key.shape[1], width]
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == paddle.int32
    bounds = cu_seqlens_q.numpy()
    assert np.array_equal(bounds, cu_seqlens_k.numpy())
    assert bounds[0] == 0
    assert bounds[-1] == tokens
    assert type(longest_q) is int
    assert longest_q == longest_k == np.diff(bounds).max()
    seen = np.zeros((tokens, tokens), bool)
    for start, end in pairwise(bounds.tolist()):
        seen[start:end, start:end] = np.tri(end - start) if causal else True
    return _softmax(query, key, value, seen, scale)


def _check_heads(heads: int, kv_heads: int, width: int) -> None:
    assert heads % kv_heads == 0
    assert width % 8 == 0
    assert width <= 256


def _softmax(query: Tensor, key: Tensor, value: Tensor, seen: np.ndarray, scale: float) -> Tensor:
    group = query.shape[1] // key.shape[1]
    k, v = (x.repeat_interleave(group, axis=1).transpose([1, 0, 2]) for x in (key, value))
    scores = paddle.matmul(query.transpose([1, 0, 2]), k, transpose_y=True) * scale
    scores = scores + paddle.to_tensor(np.where(seen, 0.0, -1e30).astype(np.float32))
    return paddle.matmul(paddle.nn.functional.softmax(scores, axis=-1), v).transpose([1, 0, 2])
