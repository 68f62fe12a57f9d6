"""The gradient of an embedding: rows of equal ids are summed in float32, in the order of the tokens."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def embedding_backward(grad: Any, ids: Any, first: Any, last: Any, out: Any) -> None:
    """Sum the rows of `grad` [T, H] of each id into its row of `out` [vocab, H], which holds zeros.

    ids int64 [T]. first, last: buffers, int32 [T], for the first and the last position of the id of each token. Nothing
    is sorted and nothing added atomically: the program of the first token of an id sums those after it.
    """
    tokens, width = grad.shape
    if tokens:
        _occurrences[(triton.cdiv(tokens, _TOKENS),)](ids, first, last, tokens, _TOKENS)
        block = min(_COLUMNS, triton.next_power_of_2(width))
        grid = (tokens, triton.cdiv(width, block))
        _sum_rows[grid](grad, ids, first, last, out, width, _TOKENS, block)


_TOKENS, _COLUMNS = 64, 128


@triton.jit
def _occurrences(ids, first, last, tokens, BLOCK: tl.constexpr):
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    id_of_own = tl.load(ids + own, mask=own < tokens, other=-1)
    lowest = tl.full([BLOCK], 2147483647, tl.int32)
    highest = tl.full([BLOCK], -1, tl.int32)
    for start in range(0, tokens, BLOCK):
        other = start + tl.arange(0, BLOCK)
        id_of_other = tl.load(ids + other, mask=other < tokens, other=-2)
        same = id_of_own[:, None] == id_of_other[None, :]
        lowest = tl.minimum(lowest, tl.min(tl.where(same, other[None, :], 2147483647), 1))
        highest = tl.maximum(highest, tl.max(tl.where(same, other[None, :], -1), 1))
    tl.store(first + own, lowest, mask=own < tokens)
    tl.store(last + own, highest, mask=own < tokens)


@triton.jit
def _sum_rows(grad, ids, first, last, out, width, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0)
    if tl.load(first + token) == token:
        row = tl.load(ids + token)
        stop = tl.load(last + token) + 1
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < width
        total = tl.zeros([COLUMNS], tl.float32)
        for start in range(token, stop, TOKENS):
            position = start + tl.arange(0, TOKENS)
            same = tl.load(ids + position, mask=position < stop, other=-1) == row
            # Most blocks of tokens hold the id nowhere.
            if tl.max(same.to(tl.int32), 0) > 0:
                rows = grad + position.to(tl.int64)[:, None] * width + columns[None, :]
                values = tl.load(rows, mask=same[:, None] & inside[None, :], other=0.0)
                total += tl.sum(values.to(tl.float32), 0)
        tl.store(out + row * width + columns, total.to(out.dtype.element_ty), mask=inside)
