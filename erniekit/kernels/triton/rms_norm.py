"""RMSNorm, with or without a residual added before it. Statistics and sums are float32."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# Programs of the backward pass. Each adds up the weight gradient of its rows, in a fixed order, without atomics.
PROGRAMS = 528
_COLUMNS, _ROWS = 32, 64


def rms_norm_forward(
    x: Any, weight: Any, eps: float, out: Any, scale: Any, residual: Any = None, total: Any = None
) -> None:
    """out [T, width] = rms_norm(x) * weight, and scale float32 [T] = 1 / sqrt(mean(x^2) + eps).

    With `residual` [T, width], x + residual is written to `total` and normalised.
    """
    rows, width = x.shape
    if rows:
        block = triton.next_power_of_2(width)
        adds = residual is not None
        _forward[(rows,)](
            x,
            residual if adds else x,
            weight,
            total if adds else out,
            out,
            scale,
            width,
            eps,
            ADDS=adds,
            BLOCK=block,
            num_warps=_warps(block),
        )


def rms_norm_backward(
    grad: Any, x: Any, weight: Any, scale: Any, grad_x: Any, partial: Any = None, grad_total: Any = None
) -> None:
    """grad_x [T, width] of the x [T, width] that was normalised; `grad_total` [T, width] of other uses of x is added.

    With `partial` float32 [programs, width], at most T programs: also each program's sum of weight gradients.
    """
    rows, width = x.shape
    if rows:
        block = triton.next_power_of_2(width)
        trains, adds = partial is not None, grad_total is not None
        _backward[(partial.shape[0] if trains else rows,)](
            grad,
            x,
            weight,
            scale,
            grad_total if adds else grad,
            grad_x,
            partial if trains else scale,
            rows,
            width,
            ADDS=adds,
            TRAINS=trains,
            BLOCK=block,
            num_warps=_warps(block),
        )


def sum_partial(partial: Any, out: Any) -> None:
    """out [width] = sums over rows of partial float32 [programs, width]."""
    rows, width = partial.shape
    _sum_rows[(triton.cdiv(width, _COLUMNS),)](partial, out, rows, width, ROWS=_ROWS, COLUMNS=_COLUMNS)


def _warps(block: int) -> int:
    """16 bytes of bfloat16 per thread, in at most 16 warps."""
    return int(min(max(block // 256, 1), 16))


@triton.jit
def _forward(
    x, residual, weight, total, out, scale, width, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    place = row * width + column
    values = tl.load(x + place, mask, 0.0)
    if ADDS:
        values += tl.load(residual + place, mask, 0.0)
        tl.store(total + place, values, mask)
    wide = values.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(wide * wide) / width + eps)
    tl.store(scale + row, inverse)
    # The normalised values are rounded before the product with the weight, as in the plain form.
    normal = (wide * inverse).to(values.dtype)
    tl.store(out + place, normal * tl.load(weight + column, mask, 0.0), mask)


@triton.jit
def _backward(
    grad, x, weight, scale, grad_total, grad_x, partial, rows, width,
    ADDS: tl.constexpr, TRAINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    mask = column < width
    factor = tl.load(weight + column, mask, 0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for row in range(first, rows, tl.num_programs(0)):
        place = tl.cast(row, tl.int64) * width + column
        upstream = tl.load(grad + place, mask, 0.0).to(tl.float32)
        values = tl.load(x + place, mask, 0.0)
        inverse = tl.load(scale + row)
        normal = values.to(tl.float32) * inverse
        scaled = upstream * factor
        result = inverse * (scaled - normal * (tl.sum(scaled * normal) / width))
        if ADDS:
            result += tl.load(grad_total + place, mask, 0.0).to(tl.float32)
        tl.store(grad_x + place, result.to(values.dtype), mask)
        if TRAINS:
            total += upstream * normal.to(values.dtype).to(tl.float32)
    if TRAINS:
        tl.store(partial + first.to(tl.int64) * width + column, total, mask)


@triton.jit
def _sum_rows(partial, out, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < width)[None, :]
        total += tl.load(partial + row[:, None] * width + column[None, :], mask, 0.0)
    tl.store(out + column, tl.sum(total, 0).to(out.dtype.element_ty), column < width)
