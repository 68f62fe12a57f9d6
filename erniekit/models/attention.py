"""Attention over packed rows: every document attends only to itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import paddle
from paddle import Tensor

from erniekit.kernels.attention import (
    LengthBucket,
    attention_form,
    batched_attention,
    flash_attention,
    flashmask_attention,
)
from erniekit.kernels.rope import rotate_pairs
from erniekit.layers import Linear
from erniekit.models.config import ErnieConfig
from erniekit.upload import Upload

# (layer index, query [T, heads, d], key [T, kv heads, d], value [T, kv heads, d]) -> [T, heads, d]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

# Scores of one batch of documents over all heads: bounds memory of rows with many documents.
_MAX_SCORES = 1 << 25
# Causal documents may share a batch if the shorter one is padded by at most this many positions, or this share.
_MAX_PADDING = 8
_MAX_PADDING_SHARE = 0.15


# Flash attention's backward pass has accumulators for [documents, longest], the length rounded up to this.
_FLASH_BLOCK = 128
# Most blocks of the accumulators in one call: a multiple of the packed row's blocks, or this number if it is larger.
_MAX_ROW_BLOCKS, _FREE_BLOCKS = 4, 64


@dataclass(frozen=True)
class _Group:
    """Documents of (nearly) one length, attended as a batch [documents, length]; `index` int64 into the row."""

    documents: int
    length: int
    index: Tensor | None


class DocumentAttention:
    """Attention over the documents of one row, planned once and used by every layer.

    `cu_seqlens` int32 [D + 1] are the boundaries of the documents. What a form of attention needs on the device is
    copied there by `upload` when a layer first needs it, and kept. The plain form batches documents of nearly the
    same length; causal ones may be padded at their ends, which no real query attends to.
    """

    def __init__(
        self, cu_seqlens: np.ndarray, *, causal: bool, heads: int, upload: Upload = paddle.to_tensor
    ) -> None:
        self.cu_seqlens = cu_seqlens
        self.causal = causal
        self._heads = heads
        self._upload = upload

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.shape[0] == 0:
            return query
        form = attention_form(query.dtype)
        if form == "flashmask":
            return flashmask_attention(query, key, value, self._mask_bounds, causal=self.causal)
        if form == "flash":
            return self._flash(query, key, value)
        groups, restore = self._plan
        outputs = []
        for group in groups:
            q, k, v = (self._batch(x, group) for x in (query, key, value))
            outputs.append(batched_attention(q, k, v, causal=self.causal).reshape([-1, *query.shape[1:]]))
        joined = outputs[0] if len(outputs) == 1 else paddle.concat(outputs)
        return joined if restore is None else paddle.index_select(joined, restore)

    def _flash(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        buckets, order, restore = self._buckets
        if order is not None:
            query, key, value = (paddle.index_select(x, order) for x in (query, key, value))
        output = flash_attention(query, key, value, buckets, causal=self.causal)
        return output if restore is None else paddle.index_select(output, restore)

    @cached_property
    def _mask_bounds(self) -> Tensor:
        """The `bounds` of `flashmask_attention`: a document's keys are seen up to its end, and from its start."""
        lengths = np.diff(self.cu_seqlens)
        bounds = np.repeat(self.cu_seqlens[1:], lengths)[:, None]
        if not self.causal:
            bounds = np.concatenate([bounds, np.repeat(self.cu_seqlens[:-1], lengths)[:, None]], 1)
        return self._upload(bounds[None, None].astype(np.int32))

    @cached_property
    def _buckets(self) -> tuple[list[LengthBucket], Tensor | None, Tensor | None]:
        """Buckets of `flash_attention`, the order that sorts a row by bucket, and its inverse."""
        starts, lengths = self.cu_seqlens[:-1].astype(np.int64), np.diff(self.cu_seqlens).astype(np.int64)
        batches = self._length_buckets(lengths)
        buckets = [
            LengthBucket(
                tokens=int(lengths[batch].sum()),
                longest=int(lengths[batch].max()),
                cu_seqlens=self._upload(np.cumsum([0, *lengths[batch]]).astype(np.int32)),
            )
            for batch in batches
        ]
        if len(buckets) == 1:
            return buckets, None, None
        documents = np.concatenate(batches)
        order = np.concatenate([starts[d] + np.arange(lengths[d]) for d in documents])
        return buckets, self._upload(order), self._upload(np.argsort(order))

    def _length_buckets(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Split documents, longest first, so that accumulators [documents, longest] stay near the size of the row."""
        blocks = -(-lengths // _FLASH_BLOCK)
        limit = max(_MAX_ROW_BLOCKS * -(-int(lengths.sum()) // _FLASH_BLOCK), _FREE_BLOCKS)
        buckets: list[list[int]] = []
        for document in np.argsort(-lengths, kind="stable").tolist():
            if lengths[document] == 0:
                continue
            if not buckets or (len(buckets[-1]) + 1) * blocks[buckets[-1][0]] > limit:
                buckets.append([])
            buckets[-1].append(document)
        return [np.sort(np.array(bucket)) for bucket in buckets]

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
            groups.append(_Group(len(batch), longest, self._upload(index.reshape(-1))))
        return groups, self._upload(restore)

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
