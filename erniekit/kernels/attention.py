"""Attention: the plain form over batches of documents, and Paddle's fused forms over packed rows.

The models plan which positions attend to which, once per row, and call the form that `form_of("attention")` names.
The fused forms are tested with stand-ins that follow the definition of their arguments; they have not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, _C_ops
from paddle.autograd import PyLayer

from erniekit.errors import ConfigError
from erniekit.kernels.choice import form_of
from erniekit.kernels.tensors import needs_gradient

# Softmax weights of documents with more keys than this are computed again in the backward pass, so that memory grows
# linearly. Below it, that would cost more time than the memory is worth.
_MAX_KEPT_KEYS = 1024
# Queries per chunk. Short causal chunks compute few masked scores; long ones make larger products.
_MIN_CHUNK, _MAX_CHUNK = 64, 256
# Rows per chunk that are enough for a fast product: queries times the heads that share a key.
_CHUNK_ROWS = 512
_MASKED = -1e30
# The types of Paddle's fused kernels.
_FUSED_TYPES = (paddle.bfloat16, paddle.float16)


def attention_form(dtype: paddle.dtype) -> str:
    """The form for queries of a type. Paddle's fused kernels have only 16-bit types: float32 is plain on GPUs too."""
    return form_of("attention") if dtype in _FUSED_TYPES else "plain"


def batched_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Grouped-query attention over documents of one length, the plain form. Softmax in float32.

    `query` [D, L, heads, d]; `key`, `value` [D, S, kv heads, d] -> [D, L, heads, d]. If causal, S >= L and the last
    query is at the position of the last key. Memory grows linearly with L and S, also for the backward pass. Keys and
    values are not repeated: query heads that share them are rows of one matrix product.
    """
    return _PlainAttention.apply(query, key, value, causal)


def flashmask_attention(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *, causal: bool) -> Tensor:
    """Attention over a packed row in one call of `F.flashmask_attention`, on GPUs.

    `query` [T, heads, d]; `key`, `value` [T, kv heads, d], 16-bit -> [T, heads, d]. `bounds` int32 [1, 1, T, 1] if
    causal: for each key, the first query that no longer sees it; else [1, 1, T, 2]: that, and the first query that sees
    it. The backward pass adds gradients of queries in any order; with FLAGS_cudnn_deterministic, which
    `train.deterministic` sets, it adds them in a fixed one and is slower. FLAGS_flash_attn_version=3 in the environment
    selects FlashAttention 3 on Hopper. Raises ConfigError for a head dimension that the kernels do not have.
    """
    _check_head_dim(query)
    rows = (x.unsqueeze(0) for x in (query, key, value))
    return F.flashmask_attention(*rows, bounds, causal=causal).squeeze(0)


@dataclass(frozen=True)
class LengthBucket:
    """Neighbouring documents of a row, sorted by length. `cu_seqlens` int32 [D + 1], from 0; `longest` of them."""

    tokens: int
    longest: int
    cu_seqlens: Tensor


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, buckets: list[LengthBucket], *, causal: bool
) -> Tensor:
    """Attention over a packed row in one call of `flash_attn_unpadded` per bucket, on GPUs.

    Shapes, types, determinism and errors as in `flashmask_attention`. The row consists of the buckets, in order. A call
    holds float32 [documents, heads, longest, d] in its backward pass, so buckets bound the memory of rows with one long
    and many short documents.
    """
    from paddle.nn.functional.flash_attention import flash_attn_unpadded

    _check_head_dim(query)
    sizes = [bucket.tokens for bucket in buckets]
    parts = zip(*(_split(x, sizes, 0) for x in (query, key, value)), buckets, strict=True)
    scale = query.shape[-1] ** -0.5
    outputs = [
        flash_attn_unpadded(
            q,
            k,
            v,
            bucket.cu_seqlens,
            bucket.cu_seqlens,
            bucket.longest,
            bucket.longest,
            scale,
            causal=causal,
        )[0]
        for q, k, v, bucket in parts
    ]
    return _concat(outputs, 0)


def _check_head_dim(query: Tensor) -> None:
    width = query.shape[-1]
    if width % 8 or width > 256:
        raise ConfigError(
            "flash attention needs a head dimension that is a multiple of 8 and at most 256, "
            f"and this model has {width}; train with kernels.backend: plain"
        )


class _PlainAttention(PyLayer):
    """Chunks of queries over the keys that they see. Head-first tensors are [D, kv heads, L * group, d], where `group`
    is the number of query heads per key head: the rows of a query position are neighbours."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        kv_heads = key.shape[2]
        group = query.shape[2] // kv_heads
        ctx.needs_gradient = needs_gradient(query, key, value)
        ctx.causal, ctx.group = causal, group
        q = _heads_first(query * query.shape[3] ** -0.5, kv_heads)
        k, v = (_heads_first(x, kv_heads) for x in (key, value))
        outputs, kept = [], []
        for rows, seen, masked in _chunks(query.shape[1], key.shape[1], group, causal):
            weights = _weights(_cut(q, *rows), _cut(k, 0, seen), masked, group)
            if key.shape[1] <= _MAX_KEPT_KEYS:
                kept.append(weights)
            outputs.append(paddle.matmul(weights.astype(v.dtype), _cut(v, 0, seen)))
        ctx.save_for_backward(q, k, v, *kept)
        return _heads_last(_concat(outputs, 2), group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensor()
        group = ctx.group
        for_query, for_key, for_value = ctx.needs_gradient
        upstream = _heads_first(grad, k.shape[1])
        d_queries: list[Tensor] = []
        d_keys: list[Tensor] = []
        d_values: list[Tensor] = []
        for number, (rows, seen, masked) in enumerate(_chunks(grad.shape[1], k.shape[2], group, ctx.causal)):
            q_rows, d_rows = _cut(q, *rows), _cut(upstream, *rows)
            keys, values = _cut(k, 0, seen), _cut(v, 0, seen)
            weights = kept[number] if kept else _weights(q_rows, keys, masked, group)
            if for_value:
                _accumulate(d_values, paddle.matmul(weights.astype(v.dtype), d_rows, transpose_x=True))
            if not (for_query or for_key):
                continue
            d_weights = paddle.matmul(d_rows, values, transpose_y=True).astype("float32")
            d_scores = _C_ops.softmax_grad(weights, d_weights, -1).astype(q.dtype)
            if for_query:
                d_queries.append(paddle.matmul(d_scores, keys))
            if for_key:
                _accumulate(d_keys, paddle.matmul(d_scores, q_rows, transpose_x=True))
        d_query = _heads_last(_concat(d_queries, 2) * q.shape[3] ** -0.5, group) if d_queries else None
        d_key, d_value = (
            _heads_last(_concat(parts, 2).astype(q.dtype), 1) if parts else None
            for parts in (d_keys, d_values)
        )
        return d_query, d_key, d_value


def kept_weights(length: int, group: int, *, causal: bool) -> int:
    """Softmax weights of one head that the plain form keeps for the backward pass over a document of that length.

    group: the number of query heads per key head.
    """
    if length > _MAX_KEPT_KEYS:
        return 0
    return sum(
        (rows[1] - rows[0]) // group * seen for rows, seen, _ in _chunks(length, length, group, causal)
    )


def _chunks(length: int, keys: int, group: int, causal: bool) -> Iterator[tuple[tuple[int, int], int, int]]:
    """((start, stop), keys, masked) of each chunk of queries: the keys it sees, and how many of these, the last ones,
    not all of its queries see."""
    size = max(_MIN_CHUNK, min(_CHUNK_ROWS // group, _MAX_CHUNK)) if causal else _MAX_CHUNK
    for start in range(0, length, size):
        stop = min(start + size, length)
        rows = start * group, stop * group
        yield (rows, keys - length + stop, stop - start) if causal else (rows, keys, 0)


def _weights(query: Tensor, key: Tensor, masked: int, group: int) -> Tensor:
    """Softmax weights, float32 [D, kv heads, rows, keys]; causal among the `masked` last keys."""
    before = key.shape[2] - masked
    if masked <= 1:
        return F.softmax_(paddle.matmul(query, key, transpose_y=True).astype("float32"), -1)
    mask = _causal_mask(group, str(query.place))[: masked * group, :masked]
    if form_of("attention") == "cpu":
        scores = paddle.matmul(query, key, transpose_y=True).astype("float32")
        partly = np.from_dlpack(scores)[..., before:]
        np.add(partly, np.from_dlpack(mask), out=partly)
        return F.softmax_(scores, -1)
    last = paddle.matmul(query, _cut(key, before, key.shape[2]), transpose_y=True).astype("float32") + mask
    if before:
        first = paddle.matmul(query, _cut(key, 0, before), transpose_y=True).astype("float32")
        last = paddle.concat([first, last], -1)
    return F.softmax_(last, -1)


@lru_cache
def _causal_mask(group: int, place: str) -> Tensor:
    """float32 [_MAX_CHUNK * group, _MAX_CHUNK]: the first rows and keys of it are the mask of a smaller chunk."""
    mask = paddle.triu(paddle.full([_MAX_CHUNK, _MAX_CHUNK], _MASKED), diagonal=1)
    return mask.repeat_interleave(group, axis=0)


def _accumulate(total: list[Tensor], part: Tensor) -> None:
    """Add to gradients of keys [D, kv heads, S, d] that of a chunk's keys, the first ones; float32.

    The total is a list of neighbouring pieces, so that a chunk that sees more keys than all before adds a piece.
    """
    sizes = [piece.shape[2] for piece in total]
    more = part.shape[2] - sum(sizes)
    pieces = _split(part.astype("float32"), [*sizes, more] if more else sizes, 2)
    for piece, other in zip(total, pieces, strict=False):
        piece.add_(other)
    total += pieces[len(sizes) :]


def _heads_first(x: Tensor, kv_heads: int) -> Tensor:
    """[D, L, heads, d] -> [D, kv heads, L * group, d]."""
    documents, length, heads, width = x.shape
    grouped = x.reshape([documents, length, kv_heads, heads // kv_heads, width]).transpose([0, 2, 1, 3, 4])
    return grouped.reshape([documents, kv_heads, -1, width])


def _heads_last(x: Tensor, group: int) -> Tensor:
    """[D, kv heads, L * group, d] -> [D, L, heads, d]."""
    documents, kv_heads, rows, width = x.shape
    grouped = x.reshape([documents, kv_heads, rows // group, group, width]).transpose([0, 2, 1, 3, 4])
    return grouped.reshape([documents, rows // group, kv_heads * group, width])


def _cut(x: Tensor, start: int, stop: int) -> Tensor:
    """Positions of the third axis; a slice of all of them would be a copy."""
    return x if (start, stop) == (0, x.shape[2]) else x[:, :, start:stop]


def _split(x: Tensor, sizes: list[int], axis: int) -> list[Tensor]:
    return [x] if len(sizes) == 1 else list(x.split(sizes, axis=axis))


def _concat(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else paddle.concat(parts, axis)
