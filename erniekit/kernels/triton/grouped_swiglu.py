"""Grouped products with SwiGLU: gate_up with SwiGLU, and the gradient of down's rows with SwiGLU's gradient.

Tensors as in `erniekit.kernels.triton.grouped_gemm`. h [n, 2F] holds gate and up, a [n, F] = silu(gate) * up.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from erniekit.kernels.triton.grouped_gemm import LowRank
from erniekit.kernels.triton.grouped_launch import (
    block_of,
    cdiv,
    descriptor,
    has_descriptor,
    launch,
    padded,
    power_of_two,
)
from erniekit.kernels.triton.grouped_tiles import load_low_rank, load_tile, locate, store_tile, tile_ends


def grouped_gate_up(x: Any, w: Any, offsets: Any, h: Any, a: Any, low_rank: LowRank = None) -> None:
    """h = x [n, K] w_e^T with w [E, 2F, K], and a of it.

    low_rank = (u [n, 2r], b [E, 2F, r]) adds u b_e^T to h: gate uses the first r columns of u, up the others.
    """
    E, F, K = w.shape[0], w.shape[1] // 2, w.shape[2]
    if not x.shape[0]:
        return
    u, b = low_rank or (x, w)
    rank = b.shape[2] if low_rank else 0
    block = block_of("gate_up_low_rank" if rank else "gate_up", x)
    BM, BN, BK = block[:3]
    tma = has_descriptor(x)
    launch(
        _gate_up_kernel,
        (cdiv(x.shape[0], BM) + E) * cdiv(F, BN),
        block,
        descriptor(x, [BM, BK]) if tma else x,
        descriptor(w, [1, 2, BN, BK], [E, 2, F, K]) if tma else w,
        u,
        b,
        h,
        a,
        offsets,
        E,
        F=F,
        K=K,
        R=rank,
        BR=padded(rank),
        TMA=tma,
        EXPERTS=power_of_two(E),
    )


def grouped_down_dx(dy: Any, w: Any, h: Any, offsets: Any, dh: Any, a: Any, low_rank: LowRank = None) -> None:
    """dh, the gradient of h, from dy [n, H] and w [E, H, F]; and a once more, for the gradient of w.

    low_rank = (v [n, r], a [E, r, F]) adds v a_e to the gradient of a.
    """
    E, H, F = w.shape
    if not dy.shape[0]:
        return
    v, lora_a = low_rank or (dy, w)
    rank = lora_a.shape[1] if low_rank else 0
    block = block_of("down_dx", dy)
    BM, BN, BK = block[:3]
    dy_tma, w_tma = has_descriptor(dy), has_descriptor(w)
    launch(
        _down_dx_kernel,
        (cdiv(dy.shape[0], BM) + E) * cdiv(F, BN),
        block,
        descriptor(dy, [BM, BK]) if dy_tma else dy,
        descriptor(w, [BK, BN]) if w_tma else w,
        v,
        lora_a,
        h,
        dh,
        a,
        offsets,
        E,
        H=H,
        F=F,
        R=rank,
        BR=padded(rank),
        DY_TMA=dy_tma,
        W_TMA=w_tma,
        EXPERTS=power_of_two(E),
    )


@triton.jit(do_not_specialize=["E"])
def _gate_up_kernel(
    x, w, u, b, h, a, offsets, E,
    F: tl.constexpr, K: tl.constexpr, R: tl.constexpr, BR: tl.constexpr, TMA: tl.constexpr, EXPERTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = (F + BN - 1) // BN
    ends = tile_ends(offsets, E, COLUMNS, BM, EXPERTS)
    for tile in tl.range(tl.program_id(0), tl.max(ends), tl.num_programs(0), flatten=FLAT):
        expert, row, end, column = locate(tile, ends, offsets, COLUMNS, BM)
        column = column * BN
        # One product for the gates of the tile and its ups.
        sums = tl.zeros((BM, 2 * BN), tl.float32)
        for k in range(0, K, BK):
            left = load_tile(x, TMA, row, k, end, K, K, BM, BK)
            if TMA:
                right = w.load([expert, 0, column, k]).reshape(2 * BN, BK)
            else:
                first = expert * 2 * F + column
                gate = load_tile(w, False, first, k, expert * 2 * F + F, K, K, BN, BK)
                up = load_tile(w, False, first + F, k, expert * 2 * F + 2 * F, K, K, BN, BK)
                right = tl.join(gate, up).permute(2, 0, 1).reshape(2 * BN, BK)
            sums = tl.dot(left, right.T, sums, input_precision="ieee")
        if R:
            local = tl.arange(0, 2 * BN)
            # Columns after the last gate do not count as ups.
            columns = tl.where(column + local % BN < F, local // BN * F + column + local % BN, 2 * F)
            left, right = load_low_rank(u, b, expert, row, end, columns, 2 * F, R, 2, False, BM, BR)
            sums = tl.dot(left, right, sums, input_precision="ieee")
        gate, up = _halves(sums, BM, 2 * BN)
        gate = gate.to(h.dtype.element_ty)
        up = up.to(h.dtype.element_ty)
        store_tile(h, gate, row, column, end, F, 2 * F, BM, BN)
        store_tile(h, up, row, F + column, end, 2 * F, 2 * F, BM, BN)
        gate = gate.to(tl.float32)
        store_tile(a, gate * tl.sigmoid(gate) * up.to(tl.float32), row, column, end, F, F, BM, BN)


@triton.jit(do_not_specialize=["E"])
def _down_dx_kernel(
    dy, w, v, lora_a, h, dh, a, offsets, E,
    H: tl.constexpr, F: tl.constexpr, R: tl.constexpr, BR: tl.constexpr, DY_TMA: tl.constexpr, W_TMA: tl.constexpr,
    EXPERTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = (F + BN - 1) // BN
    ends = tile_ends(offsets, E, COLUMNS, BM, EXPERTS)
    for tile in tl.range(tl.program_id(0), tl.max(ends), tl.num_programs(0), flatten=FLAT):
        expert, row, end, column = locate(tile, ends, offsets, COLUMNS, BM)
        column = column * BN
        da = tl.zeros((BM, BN), tl.float32)
        for k in range(0, H, BK):
            left = load_tile(dy, DY_TMA, row, k, end, H, H, BM, BK)
            right = load_tile(w, W_TMA, expert * H + k, column, expert * H + H, F, F, BK, BN)
            da = tl.dot(left, right, da, input_precision="ieee")
        if R:
            columns = column + tl.arange(0, BN)
            left, right = load_low_rank(v, lora_a, expert, row, end, columns, F, R, 1, True, BM, BR)
            da = tl.dot(left, right, da, input_precision="ieee")
        # In pieces, which fit in the registers together with the sums.
        if BN == 256:
            left, right = _halves(da, BM, BN)
            first, second = _halves(left, BM, BN // 2)
            third, fourth = _halves(right, BM, BN // 2)
            _swiglu_gradient(first, h, dh, a, row, column, end, F, BM, BN // 4)
            _swiglu_gradient(second, h, dh, a, row, column + BN // 4, end, F, BM, BN // 4)
            _swiglu_gradient(third, h, dh, a, row, column + BN // 2, end, F, BM, BN // 4)
            _swiglu_gradient(fourth, h, dh, a, row, column + 3 * BN // 4, end, F, BM, BN // 4)
        else:
            left, right = _halves(da, BM, BN)
            _swiglu_gradient(left, h, dh, a, row, column, end, F, BM, BN // 2)
            _swiglu_gradient(right, h, dh, a, row, column + BN // 2, end, F, BM, BN // 2)


@triton.jit
def _halves(x, BM: tl.constexpr, BN: tl.constexpr):
    return x.reshape(BM, 2, BN // 2).permute(0, 2, 1).split()


@triton.jit
def _swiglu_gradient(da, h, dh, a, row, column, end, F: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    gate = load_tile(h, False, row, column, end, F, 2 * F, BM, BN).to(tl.float32)
    up = load_tile(h, False, row, F + column, end, 2 * F, 2 * F, BM, BN).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    store_tile(a, silu * up, row, column, end, F, F, BM, BN)
    store_tile(dh, da * up * (share + silu * (1 - share)), row, column, end, F, 2 * F, BM, BN)
    store_tile(dh, da * silu, row, F + column, end, 2 * F, 2 * F, BM, BN)
