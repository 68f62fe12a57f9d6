"""RMSNorm, with or without a residual added before it. Statistics and sums are float32."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# Programs of the backward pass. Each adds up the weight gradient of its rows, in a fixed order, without atomics. More
# programs leave more sums to add up: on an H200 264 were faster than 528.
PROGRAMS = 264
_COLUMNS = 16
# Bytes of shared memory for rows of the backward pass that are on their way.
_BUFFERS = 73_728


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
        _rms_norm_forward_kernel[(rows,)](
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
        _rms_norm_backward_kernel[(partial.shape[0] if trains else min(PROGRAMS, rows),)](
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
            STAGES=_stages((3 if adds else 2) * block * x.element_size()),
            num_warps=_warps(block),
        )


def sum_partial(partial: Any, out: Any) -> None:
    """out [width] = sums over rows of partial float32 [programs, width]."""
    rows, width = partial.shape
    _sum_partial_kernel[(triton.cdiv(width, _COLUMNS),)](
        partial, out, rows, width, ROWS=triton.next_power_of_2(max(rows, 1)), COLUMNS=_COLUMNS, num_warps=8
    )


def _warps(block: int) -> int:
    """16 values per thread, in at most 16 warps."""
    return int(min(max(block // 512, 1), 16))


def _stages(row: int) -> int:
    """Rows of a program that are in flight, and one more: of `row` bytes each, so many as every GPU has room for."""
    return int(min(max(_BUFFERS // row, 0), 3)) + 1


@triton.jit
def _rms_norm_forward_kernel(
    x, residual, weight, total, out, scale, width, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    place = row * width + column
    wide = tl.load(x + place, mask, 0.0).to(tl.float32)
    dtype: tl.constexpr = x.dtype.element_ty
    if ADDS:
        values = (wide + tl.load(residual + place, mask, 0.0).to(tl.float32)).to(dtype)
        tl.store(total + place, values, mask)
        # What is normalised is the sum as it is stored.
        wide = values.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(wide * wide) / width + eps)
    tl.store(scale + row, inverse)
    # The normalised values are rounded before the product with the weight, as in the plain form.
    normal = (wide * inverse).to(dtype).to(tl.float32)
    factor = tl.load(weight + column, mask, 0.0).to(tl.float32)
    tl.store(out + place, (normal * factor).to(dtype), mask)


@triton.jit
def _rms_norm_backward_kernel(
    grad, x, weight, scale, grad_total, grad_x, partial, rows, width,
    ADDS: tl.constexpr, TRAINS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    mask = column < width
    factor = tl.load(weight + column, mask, 0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for row in tl.range(first, rows, tl.num_programs(0), num_stages=STAGES):
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
def _sum_partial_kernel(partial, out, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)[:, None]
    mask = (row < rows) & (column < width)[None, :]
    total = tl.sum(tl.load(partial + row * width + column[None, :], mask, 0.0), 0)
    tl.store(out + column, total.to(out.dtype.element_ty), column < width)
