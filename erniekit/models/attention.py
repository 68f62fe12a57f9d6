"""Attention over packed rows: every document attends only to itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.kernels.rope import rotate_pairs
from erniekit.layers import Linear
from erniekit.models.config import ErnieConfig

# (layer index, query [T, heads, d], key [T, kv heads, d], value [T, kv heads, d]) -> [T, heads, d]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

# Queries per chunk of a long document: bounds memory, and skips keys after the chunk.
_QUERY_CHUNK = 256
# Scores of one batch of documents over all heads: bounds memory of rows with many documents.
_MAX_SCORES = 1 << 25
# Causal documents may share a batch if the shorter one is padded by at most this many positions, or this share.
_MAX_PADDING = 8
_MAX_PADDING_SHARE = 0.15


@dataclass(frozen=True)
class _Group:
    """Documents of (nearly) one length, attended as a batch [documents, length]; `index` int64 into the row."""

    documents: int
    length: int
    index: Tensor | None


class DocumentAttention:
    """Attention over the documents of one row, planned once and used by every layer.

    `cu_seqlens` int32 [D + 1] are the boundaries of the documents. On CPU, documents of nearly the same length are
    batched; causal ones may be padded at their ends, which no real query attends to. On GPU, 16-bit types use
    `flash_attn_unpadded`.
    """

    def __init__(self, cu_seqlens: np.ndarray, *, causal: bool, heads: int) -> None:
        self.cu_seqlens = cu_seqlens
        self.causal = causal
        self._heads = heads

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.place.is_gpu_place() and query.dtype in (paddle.bfloat16, paddle.float16):
            return self._flash(query, key, value)
        if query.shape[0] == 0:
            return query
        groups, restore = self._plan
        outputs = []
        for group in groups:
            q, k, v = (self._batch(x, group) for x in (query, key, value))
            outputs.append(batched_attention(q, k, v, causal=self.causal).reshape([-1, *query.shape[1:]]))
        joined = outputs[0] if len(outputs) == 1 else paddle.concat(outputs)
        return joined if restore is None else paddle.index_select(joined, restore)

    @staticmethod
    def _batch(x: Tensor, group: _Group) -> Tensor:
        rows = x if group.index is None else paddle.index_select(x, group.index)
        return rows.reshape([group.documents, group.length, *x.shape[1:]])

    @cached_property
    def _plan(self) -> tuple[list[_Group], Tensor | None]:
        """Groups, and the index that restores the order of the row from their concatenated outputs."""
        starts, lengths = self.cu_seqlens[:-1].astype(np.int64), np.diff(self.cu_seqlens).astype(np.int64)
        batches = self._batches(lengths)
        if len(batches) == 1 and len(set(lengths)) == 1:
            return [_Group(len(lengths), int(lengths[0]), None)], None
        restore = np.empty(int(self.cu_seqlens[-1]), np.int64)
        groups, offset = [], 0
        for batch in batches:
            longest = int(lengths[batch].max())
            slots = np.arange(longest)
            # Padding repeats the last position of a document; any finite value would do.
            index = starts[batch][:, None] + np.minimum(slots, lengths[batch][:, None] - 1)
            real = slots < lengths[batch][:, None]
            restore[index[real]] = offset + np.flatnonzero(real.reshape(-1))
            offset += index.size
            groups.append(_Group(len(batch), longest, paddle.to_tensor(index.reshape(-1))))
        return groups, paddle.to_tensor(restore)

    def _batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Split documents into batches of nearly equal length; if not causal, of exactly equal length."""
        order = np.argsort(-lengths, kind="stable")
        batches: list[list[int]] = []
        for document in order.tolist():
            length = int(lengths[document])
            if length == 0:
                continue
            longest = int(lengths[batches[-1][0]]) if batches else 0
            slack = max(_MAX_PADDING, int(longest * _MAX_PADDING_SHARE)) if self.causal else 0
            fits = batches and longest - length <= slack
            if not fits or (len(batches[-1]) + 1) * longest**2 * self._heads > _MAX_SCORES:
                batches.append([])
            batches[-1].append(document)
        return [np.sort(np.array(batch)) for batch in batches]

    def _flash(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        from paddle.nn.functional.flash_attention import flash_attn_unpadded

        boundaries = paddle.to_tensor(self.cu_seqlens.astype(np.int32))
        longest = int(np.diff(self.cu_seqlens).max(initial=0))
        scale = query.shape[-1] ** -0.5
        output, _ = flash_attn_unpadded(
            query, key, value, boundaries, boundaries, longest, longest, scale, causal=self.causal
        )
        return output


def batched_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Grouped-query attention, the plain form. Softmax in float32.

    `query` [D, L, heads, d]; `key`, `value` [D, S, kv heads, d] -> [D, L, heads, d]. If causal, S >= L and the last
    query is at the position of the last key. Keys and values are not repeated: query heads that share them are rows of
    one matrix product.
    """
    documents, length, heads, width = query.shape
    kv_heads = key.shape[2]
    grouped = [documents, length, kv_heads, heads // kv_heads, width]
    q = (query * width**-0.5).reshape(grouped).transpose([0, 2, 3, 1, 4])
    k, v = key.transpose([0, 2, 1, 3]), value.transpose([0, 2, 1, 3])
    chunks = []
    for start in range(0, length, _QUERY_CHUNK):
        stop = min(start + _QUERY_CHUNK, length)
        seen = key.shape[1] - length + stop if causal else key.shape[1]
        whole = seen == key.shape[1]
        part = q if stop - start == length else q[:, :, :, start:stop]
        chunks.append(
            _attend_chunk(part, k if whole else k[:, :, :seen], v if whole else v[:, :, :seen], causal)
        )
    output = chunks[0] if len(chunks) == 1 else paddle.concat(chunks, axis=3)
    return output.transpose([0, 3, 1, 2, 4]).reshape([documents, length, heads, width])


def _attend_chunk(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """[D, kv, g, l, d] over keys and values [D, kv, S, d]; the last query is at the position of the last key."""
    documents, kv_heads, group, length, width = query.shape
    seen = key.shape[2]
    rows = query.reshape([documents, kv_heads, group * length, width])
    scores = paddle.matmul(rows, key, transpose_y=True).reshape([documents, kv_heads, group, length, seen])
    if causal and length > 1:
        scores = scores + _causal_mask(length, seen).astype(scores.dtype)
    weights = F.softmax(scores.astype("float32"), axis=-1).astype(value.dtype)
    output = paddle.matmul(weights.reshape([documents, kv_heads, group * length, seen]), value)
    return output.reshape([documents, kv_heads, group, length, width])


def _causal_mask(length: int, seen: int) -> Tensor:
    return paddle.triu(paddle.full([length, seen], -1e30), diagonal=seen - length + 1)


class Attention(paddle.nn.Layer):
    """Grouped-query self-attention of the decoder."""

    def __init__(self, config: ErnieConfig, layer: int, dtype: str) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        query = config.num_attention_heads * config.head_dim
        key = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query, dtype=dtype)
        self.k_proj = Linear(config.hidden_size, key, dtype=dtype)
        self.v_proj = Linear(config.hidden_size, key, dtype=dtype)
        self.o_proj = Linear(query, config.hidden_size, dtype=dtype)

    def forward(self, x: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        """[T, hidden] -> [T, hidden]; `rotation` from `decoder_rotation`."""
        tokens = x.shape[0]
        projections = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (project(x).reshape([tokens, -1, self.head_dim]) for project in projections)
        q, k = rotate_pairs(q, k, rotation)
        return self.o_proj(attend(self.layer, q, k, v).reshape([tokens, -1]))
