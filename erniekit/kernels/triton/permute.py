"""Rows of tokens to their places in the order of experts and back, and that order.

One program per token: it reads each of its rows once and writes each once. Every place is written by one program, so
nothing is atomic.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

_COLUMNS, _WARPS = 1024, 4
_PAIRS = 64


def copy_rows(x: Any, slots: Any, out: Any) -> None:
    """out[slots[t, j]] = x[t]. `x` [T, width], `slots` int32 [T, k], `out` [T * k, width]."""
    tokens, top_k = slots.shape
    if tokens:
        width = x.shape[1]
        _copy_rows_kernel[(tokens, triton.cdiv(width, _COLUMNS))](
            x, slots, out, width, TOP_K=top_k, COLUMNS=_COLUMNS, num_warps=_WARPS
        )


def sum_rows(y: Any, slots: Any, weights: Any, out: Any) -> None:
    """out[t] = sum of weights[t, j] * y[slots[t, j]] over j, in float32; no weights (None): 1.

    `y` [T * k, width], `slots` int32 [T, k], `weights` float32 [T, k], `out` [T, width].
    """
    tokens, top_k = slots.shape
    if tokens:
        width = y.shape[1]
        weighted = weights is not None
        _sum_rows_kernel[(tokens, triton.cdiv(width, _COLUMNS))](
            y,
            slots,
            weights if weighted else slots,
            out,
            width,
            TOP_K=top_k,
            WEIGHTED=weighted,
            COLUMNS=_COLUMNS,
            num_warps=_WARPS,
        )


def unpermute_backward(grad: Any, y: Any, slots: Any, weights: Any, grad_y: Any, grad_weights: Any) -> None:
    """grad_y[slots[t, j]] = weights[t, j] * grad[t], and grad_weights[t, j] = <y[slots[t, j]], grad[t]> in float32.

    Shapes as in `sum_rows`; `grad` [T, width].
    """
    tokens, top_k = slots.shape
    if tokens:
        width = y.shape[1]
        block = triton.next_power_of_2(width)
        _unpermute_backward_kernel[(tokens,)](
            grad,
            y,
            slots,
            weights,
            grad_y,
            grad_weights,
            width,
            TOP_K=top_k,
            BLOCK=block,
            num_warps=_warps(block),
        )


def sort_by_expert(
    experts: Any, order: Any, slots: Any, offsets: Any, counts: Any, starts: Any, totals: Any
) -> None:
    """Counting sort of pairs by expert; pairs of an expert stay in order.

    `experts` int64 [T, k] -> `order` int32 [T * k], `slots` int32 [T, k], `offsets` int32 [E + 1]. Buffers: `counts`,
    `starts` int32 [E, blocks_of_pairs(T * k)], `totals` int32 [E].
    """
    pairs = slots.shape[0] * slots.shape[1]
    num_experts, blocks = counts.shape
    experts_block = triton.next_power_of_2(num_experts)
    _count_experts_kernel[(blocks,)](experts, counts, pairs, num_experts, EXPERTS=experts_block, PAIRS=_PAIRS)
    _add_up_counts_kernel[(num_experts,)](
        counts, starts, totals, blocks, BLOCK=triton.next_power_of_2(blocks)
    )
    _place_pairs_kernel[(blocks,)](
        experts,
        starts,
        totals,
        order,
        slots,
        offsets,
        pairs,
        num_experts,
        EXPERTS=experts_block,
        PAIRS=_PAIRS,
    )


def _warps(block: int) -> int:
    """32 values per thread, in at most 16 warps."""
    return int(min(max(block // 1024, 1), 16))


def blocks_of_pairs(pairs: int) -> int:
    """Programs that share the pairs; at least one."""
    return int(max(triton.cdiv(pairs, _PAIRS), 1))


@triton.jit
def _copy_rows_kernel(x, slots, out, width, TOP_K: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < width
    row = tl.load(x + token * width + column, mask)
    for j in tl.static_range(TOP_K):
        slot = tl.load(slots + token * TOP_K + j).to(tl.int64)
        tl.store(out + slot * width + column, row, mask)


@triton.jit
def _sum_rows_kernel(
    y, slots, weights, out, width, TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < width
    total = tl.zeros([COLUMNS], tl.float32)
    for j in tl.static_range(TOP_K):
        slot = tl.load(slots + token * TOP_K + j).to(tl.int64)
        row = tl.load(y + slot * width + column, mask, 0.0).to(tl.float32)
        if WEIGHTED:
            row *= tl.load(weights + token * TOP_K + j)
        total += row
    tl.store(out + token * width + column, total.to(out.dtype.element_ty), mask)


@triton.jit
def _unpermute_backward_kernel(
    grad, y, slots, weights, grad_y, grad_weights, width, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    upstream = tl.load(grad + token * width + column, mask, 0.0).to(tl.float32)
    for j in tl.static_range(TOP_K):
        slot = tl.load(slots + token * TOP_K + j).to(tl.int64)
        row = tl.load(y + slot * width + column, mask, 0.0).to(tl.float32)
        tl.store(grad_weights + token * TOP_K + j, tl.sum(row * upstream))
        scaled = upstream * tl.load(weights + token * TOP_K + j)
        tl.store(grad_y + slot * width + column, scaled.to(grad_y.dtype.element_ty), mask)


@triton.jit
def _is_expert(experts, pairs, EXPERTS: tl.constexpr, PAIRS: tl.constexpr):
    """The pairs of a program, which exist, and whether each is of each expert: [PAIRS, EXPERTS] of 0 and 1."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    expert = tl.load(experts + pair, pair < pairs, -1)
    return pair, (expert[:, None] == tl.arange(0, EXPERTS)[None, :]).to(tl.int32)


@triton.jit
def _count_experts_kernel(experts, counts, pairs, num_experts, EXPERTS: tl.constexpr, PAIRS: tl.constexpr):
    """Each program counts the pairs of each expert in its block."""
    _, is_expert = _is_expert(experts, pairs, EXPERTS, PAIRS)
    expert = tl.arange(0, EXPERTS)
    place = expert * tl.num_programs(0) + tl.program_id(0)
    tl.store(counts + place, tl.sum(is_expert, 0), expert < num_experts)


@triton.jit
def _add_up_counts_kernel(counts, starts, totals, blocks, BLOCK: tl.constexpr):
    """Of one expert: the pairs before each program of `_place_pairs_kernel`, and all."""
    expert = tl.program_id(0)
    block = tl.arange(0, BLOCK)
    count = tl.load(counts + expert * blocks + block, block < blocks, 0)
    tl.store(starts + expert * blocks + block, tl.cumsum(count, 0) - count, block < blocks)
    tl.store(totals + expert, tl.sum(count))


@triton.jit
def _place_pairs_kernel(
    experts, starts, totals, order, slots, offsets, pairs, num_experts, EXPERTS: tl.constexpr, PAIRS: tl.constexpr
):  # fmt: skip
    pair, is_expert = _is_expert(experts, pairs, EXPERTS, PAIRS)
    expert = tl.arange(0, EXPERTS)
    known = expert < num_experts
    total = tl.load(totals + expert, known, 0)
    ends = tl.cumsum(total, 0)
    if tl.program_id(0) == 0:
        tl.store(offsets, 0)
        tl.store(offsets + 1 + expert, ends, known)
    first = ends - total + tl.load(starts + expert * tl.num_programs(0) + tl.program_id(0), known, 0)
    slot = tl.sum((tl.cumsum(is_expert, 0) - 1 + first[None, :]) * is_expert, 1)
    inside = pair < pairs
    tl.store(slots + pair, slot, inside)
    tl.store(order + slot, pair, inside)
