"""Attention over documents that may end in two branches, which do not attend to each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import paddle
from paddle import Tensor

from erniekit.kernels.attention import attention_form, batched_attention, flashmask_attention
from erniekit.models.attention import DocumentAttention
from erniekit.upload import Upload

# Second branches with equally long prompts may share a batch if the shorter one is padded by at most this.
_MAX_PADDING = 8
# Scores of one such batch over all heads: bounds memory.
_MAX_SCORES = 1 << 25


@dataclass(frozen=True)
class _Tails:
    """Second branches attended as a batch: `queries` int64 [documents * length] and `keys` [documents * seen]."""

    documents: int
    length: int
    seen: int
    queries: Tensor
    keys: Tensor


class BranchAttention:
    """Causal attention over a row in which document i is [start, end) with branches at first_i <= second_i.

    [start, second) is causal; a position of [second, end) attends to [start, first) and to earlier positions of
    [second, end). `cu_seqlens` int32 [D + 1]; `branches` int32 [D, 2] are positions in the row, or [0, 2] if no
    document has branches. Projections, MLPs and experts process every position once; only attention treats branches
    specially.

    flashmask has this mask: keys of first branches end where second branches begin. In the plain form second branches
    are rectangles: their queries over the keys of the prompt and of the branch. For flash both continuations are
    separate documents, [start, second) and [start, first) + [second, end), made by gathering the queries, keys and
    values of the prompt twice and keeping one output per position, so that `flash_attn_unpadded` only sees square
    causal documents. (For rectangles, the corner that causal masks align to changed between versions of
    flash-attention, and Paddle's fork changed it back.)
    """

    def __init__(
        self,
        cu_seqlens: np.ndarray,
        branches: np.ndarray,
        heads: int,
        upload: Upload = paddle.to_tensor,
    ) -> None:
        self._heads = heads
        self._upload = upload
        bounds = cu_seqlens.astype(np.int64)
        if len(branches):
            self._starts, self._ends = bounds[:-1], bounds[1:]
            self._firsts, self._seconds = branches.astype(np.int64).T
            segments = np.stack([self._seconds, self._ends], 1).reshape(-1)
            bounds = np.concatenate([bounds[:1], segments])
        # Without shared prompts the branches are ordinary documents.
        self._plain: DocumentAttention | None = None
        if not len(branches) or (self._firsts == self._starts).all():
            self._plain = DocumentAttention(bounds, causal=True, heads=heads, upload=upload)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self._plain is not None:
            return self._plain(layer, query, key, value)
        form = attention_form(query.dtype)
        if form == "flashmask":
            return flashmask_attention(query, key, value, self._mask_bounds, causal=True)
        if form == "flash":
            return self.squares(layer, query, key, value)
        return self.rectangles(layer, query, key, value)

    def squares(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The form for `flash_attn_unpadded`."""
        attend, expanded, restore = self._squares
        q, k, v = (paddle.index_select(x, expanded) for x in (query, key, value))
        return paddle.index_select(attend(layer, q, k, v), restore)

    def rectangles(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The plain form."""
        attend, heads, tails, restore = self._rectangles
        outputs = [attend(layer, *(paddle.index_select(x, heads) for x in (query, key, value)))]
        for tail in tails:
            q = paddle.index_select(query, tail.queries).reshape(
                [tail.documents, tail.length, *query.shape[1:]]
            )
            k, v = (
                paddle.index_select(x, tail.keys).reshape([tail.documents, tail.seen, *x.shape[1:]])
                for x in (key, value)
            )
            outputs.append(batched_attention(q, k, v, causal=True).reshape([-1, *query.shape[1:]]))
        return paddle.index_select(paddle.concat(outputs), restore)

    @cached_property
    def _mask_bounds(self) -> Tensor:
        """The `bounds` of `flashmask_attention`: which query is the first that no longer sees a key."""
        bounds = np.repeat(self._ends, self._ends - self._starts)
        for first, second in zip(self._firsts, self._seconds, strict=True):
            bounds[first:second] = second
        return self._upload(bounds[None, None, :, None].astype(np.int32))

    @cached_property
    def _squares(self) -> tuple[DocumentAttention, Tensor, Tensor]:
        """How to attend, the positions that are gathered for it, and where each position's output is."""
        gathered: list[np.ndarray] = []
        kept: list[np.ndarray] = []
        offset = 0
        for start, first, second, end in zip(
            self._starts, self._firsts, self._seconds, self._ends, strict=True
        ):
            shared = np.arange(start, first)
            gathered += [np.arange(start, second), np.concatenate([shared, np.arange(second, end)])]
            kept.append(offset + np.arange(second - start))
            offset += second - start
            kept.append(offset + len(shared) + np.arange(end - second))
            offset += len(shared) + end - second
        bounds = np.cumsum([0, *map(len, gathered)])
        attend = DocumentAttention(bounds, causal=True, heads=self._heads, upload=self._upload)
        return attend, self._upload(np.concatenate(gathered)), self._upload(np.concatenate(kept))

    @cached_property
    def _rectangles(self) -> tuple[DocumentAttention, Tensor, list[_Tails], Tensor]:
        """How to attend [start, second) of all documents and which positions these are, second branches in batches, and
        where each position's output is."""
        heads = np.concatenate([np.arange(*pair) for pair in zip(self._starts, self._seconds, strict=True)])
        restore = np.empty(int(self._ends[-1]), np.int64)
        restore[heads] = np.arange(len(heads))
        offset = len(heads)
        tails = []
        for batch in self._batches():
            length = int((self._ends - self._seconds)[batch].max())
            slots = np.arange(length)
            own = (self._ends - self._seconds)[batch][:, None]
            # Padding repeats a branch's last position, after all of its queries: any finite value serves.
            queries = self._seconds[batch][:, None] + np.minimum(slots, own - 1)
            shared = self._starts[batch][:, None] + np.arange((self._firsts - self._starts)[batch[0]])
            keys = np.concatenate([shared, queries], 1)
            real = slots < own
            restore[queries[real]] = offset + np.flatnonzero(real.reshape(-1))
            offset += queries.size
            tails.append(
                _Tails(
                    len(batch),
                    length,
                    keys.shape[1],
                    self._upload(queries.reshape(-1)),
                    self._upload(keys.reshape(-1)),
                )
            )
        bounds = np.cumsum([0, *(self._seconds - self._starts)])
        attend = DocumentAttention(bounds, causal=True, heads=self._heads, upload=self._upload)
        return attend, self._upload(heads), tails, self._upload(restore)

    def _batches(self) -> list[np.ndarray]:
        """Batches of documents with equally many shared tokens and nearly equally long second branches."""
        lengths, shared = self._ends - self._seconds, self._firsts - self._starts
        batches: list[list[int]] = []
        for document in np.lexsort((-lengths, shared)).tolist():
            if lengths[document] == 0:
                continue
            longest = batches[-1][0] if batches else document
            length, before = int(lengths[longest]), int(shared[longest])
            scores = length * (before + length) * self._heads
            fits = before == shared[document] and length - lengths[document] <= _MAX_PADDING
            if not batches or not fits or (len(batches[-1]) + 1) * scores > _MAX_SCORES:
                batches.append([])
            batches[-1].append(document)
        return [np.array(batch) for batch in batches]
