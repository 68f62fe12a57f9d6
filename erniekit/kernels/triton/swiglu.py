"""SwiGLU of two tensors, or of the halves of one."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# Values of one program.
_TILE = 2048


def swiglu_forward(gate: Any, up: Any, out: Any) -> None:
    """out [n, F] = silu(gate) * up. `gate`, `up` [n, F]; without `up`, `gate` [n, 2F] holds both, gate first."""
    rows, width = out.shape
    if rows:
        joined = up is None
        tile_rows, columns = _tile(width)
        _swiglu_forward_kernel[_grid(rows, width)](
            gate,
            gate if joined else up,
            out,
            rows,
            width,
            JOINED=joined,
            ROWS=tile_rows,
            COLUMNS=columns,
        )


def swiglu_backward(grad: Any, gate: Any, up: Any, grad_gate: Any, grad_up: Any) -> None:
    """Gradients, in tensors of the same form as the inputs of `swiglu_forward`. `grad` [n, F]."""
    rows, width = grad.shape
    if rows:
        joined = up is None
        tile_rows, columns = _tile(width)
        _swiglu_backward_kernel[_grid(rows, width)](
            grad,
            gate,
            gate if joined else up,
            grad_gate,
            grad_gate if joined else grad_up,
            rows,
            width,
            JOINED=joined,
            ROWS=tile_rows,
            COLUMNS=columns,
        )


def _tile(width: int) -> tuple[int, int]:
    """Rows and columns of one program."""
    columns = min(triton.next_power_of_2(width), _TILE)
    return _TILE // columns, columns


def _grid(rows: int, width: int) -> tuple[int, int]:
    tile_rows, columns = _tile(width)
    return triton.cdiv(rows, tile_rows), triton.cdiv(width, columns)


@triton.jit
def _places(rows, width, JOINED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Places in a tensor [rows, width], of gates, and of values, and what is inside."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    place = row * width + column
    if JOINED:
        gate = row * (2 * width) + column
        up = gate + width
    else:
        gate = place
        up = place
    return place, gate, up, (row < rows) & (column < width)


@triton.jit
def _swiglu_forward_kernel(
    gate, up, out, rows, width, JOINED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    place, gate_place, up_place, mask = _places(rows, width, JOINED, ROWS, COLUMNS)
    g = tl.load(gate + gate_place, mask, 0.0).to(tl.float32)
    u = tl.load(up + up_place, mask, 0.0).to(tl.float32)
    tl.store(out + place, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask)


@triton.jit
def _swiglu_backward_kernel(
    grad, gate, up, grad_gate, grad_up, rows, width,
    JOINED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    place, gate_place, up_place, mask = _places(rows, width, JOINED, ROWS, COLUMNS)
    upstream = tl.load(grad + place, mask, 0.0).to(tl.float32)
    g = tl.load(gate + gate_place, mask, 0.0).to(tl.float32)
    u = tl.load(up + up_place, mask, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    silu = g * sigmoid
    slope = sigmoid + silu * (1.0 - sigmoid)
    tl.store(grad_gate + gate_place, (upstream * u * slope).to(grad_gate.dtype.element_ty), mask)
    tl.store(grad_up + up_place, (upstream * silu).to(grad_up.dtype.element_ty), mask)
