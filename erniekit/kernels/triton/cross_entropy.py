"""Cross entropy of rows of logits, and sums of weight gradients."""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl


def cross_entropy(
    logits: Any, labels: Any, losses: Any, scale: Any | None = None, *, gradient: bool = True
) -> None:
    """Write -log softmax(logits)[label] of each row, and with `gradient` overwrite the logits with its gradient.

    logits [n, vocab], labels int64 [n], losses float32 [n]. scale, float32 [n]: factors of the gradients of the rows,
    applied before they are rounded to the dtype of the logits. Softmax and sums are float32.
    """
    rows, vocab = logits.shape
    if rows:
        block = min(_BLOCK, triton.next_power_of_2(vocab))
        scaled = scale is not None
        _cross_entropy[(rows,)](
            logits, labels, losses, scale if scaled else losses, vocab, scaled, gradient, block, num_warps=8
        )


def accumulate(total: Any, part: Any) -> None:
    """total += part, without a float32 copy of `part`. Both contiguous, of the same shape; total is float32."""
    size = math.prod(total.shape)
    if size:
        _accumulate[(triton.cdiv(size, _BLOCK),)](total, part, size, _BLOCK, num_warps=8)


_BLOCK = 4096


@triton.jit
def _cross_entropy(
    logits,
    labels,
    losses,
    scale,
    vocab,
    SCALED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocab
    columns = tl.arange(0, BLOCK)
    target = tl.load(labels + row)
    at_target = tl.load(logits + target).to(tl.float32)
    # The sum of exponentials relative to the largest logit so far.
    peak = -float("inf")
    total = 0.0
    for start in range(0, vocab, BLOCK):
        x = tl.load(logits + start + columns, mask=start + columns < vocab, other=-float("inf")).to(
            tl.float32
        )
        larger = tl.maximum(peak, tl.max(x, 0))
        total = total * tl.exp(peak - larger) + tl.sum(tl.exp(x - larger), 0)
        peak = larger
    tl.store(losses + row, tl.log(total) + (peak - at_target))
    if GRADIENT:
        factor = 1.0
        if SCALED:
            factor = tl.load(scale + row)
        for start in range(0, vocab, BLOCK):
            inside = start + columns < vocab
            x = tl.load(logits + start + columns, mask=inside).to(tl.float32)
            probability = tl.exp(x - peak) / total
            error = tl.where(start + columns == target, probability - 1.0, probability) * factor
            tl.store(logits + start + columns, error.to(logits.dtype.element_ty), mask=inside)


@triton.jit
def _accumulate(total, part, size, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    added = tl.load(part + places, mask=inside).to(tl.float32)
    tl.store(total + places, tl.load(total + places, mask=inside) + added, mask=inside)
