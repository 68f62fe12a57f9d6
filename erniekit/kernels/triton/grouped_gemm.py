"""Grouped matrix products in Triton: the rows of each expert times that expert's matrix.

Rows are sorted by expert; `offsets` int32 [E + 1] holds where the rows of each expert begin and stays on the device.
Tensors are contiguous and of one type, bfloat16, float16 or float32; sums are float32. The caller allocates the
outputs. Grids depend on shapes alone, so nothing waits for the device.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from erniekit.kernels.triton.grouped_launch import (
    block_of,
    cdiv,
    descriptor,
    has_descriptor,
    launch,
    padded,
    power_of_two,
    ragged_descriptor,
)
from erniekit.kernels.triton.grouped_tiles import (
    load_low_rank,
    load_rows,
    load_tile,
    locate,
    store_tile,
    tile_ends,
)

LowRank = tuple[Any, Any] | None


def grouped_gemm(
    x: Any, w: Any, offsets: Any, out: Any, low_rank: LowRank = None, *, scale: float = 1.0
) -> None:
    """out [n, N] = scale * (x [n, K] w_e^T), with w [E, N, K].

    low_rank = (u [n, G * r], b [E, N, r]) adds u b_e^T before the scale: each of G parts of N uses r columns of u.
    """
    _, N, K = w.shape
    u, b = low_rank or (x, w)
    rank = b.shape[2] if low_rank else 0
    _launch_rows(x, w, u, b, offsets, out, scale, (N, K, rank), parts=1, transposed=False)


def grouped_gemm_dx(
    dy: Any, w: Any, offsets: Any, out: Any, low_rank: LowRank = None, *, scale: float = 1.0
) -> None:
    """out [n, K] = scale * (dy [n, N] w_e), with w [E, N, K].

    low_rank = (v [n, R], a [E, R, K]) adds v a_e before the scale. With out [n, G * K], each of G equal parts of N is
    multiplied separately and fills K columns.
    """
    _, N, K = w.shape
    v, a = low_rank or (dy, w)
    rank = a.shape[1] if low_rank else 0
    _launch_rows(dy, w, v, a, offsets, out, scale, (K, N, rank), parts=out.shape[1] // K, transposed=True)


def grouped_gemm_dw(dy: Any, x: Any, offsets: Any, out: Any) -> None:
    """out [E, N, K] = dy_e^T x_e, with dy [n, N] and x [n, K]: zeros for an expert without rows.

    With x [n, G * K] the g-th of G equal parts of N uses the g-th K columns of x. `out` may be float32.
    """
    E, N, K = out.shape
    parts = x.shape[1] // K
    narrow = min(N // parts, K) <= 64
    block = block_of("dw_narrow" if narrow else "dw", dy)
    # The narrow side of a gradient of an adapter. 64: the fewest rows of a product on a tensor core.
    block = block._replace(BN=min(block.BN, max(64, padded(N // parts))), BK=min(block.BK, padded(K)))
    BM, BN, BK = block[:3]
    dy_tma, x_tma = has_descriptor(dy, parts), has_descriptor(x, parts)
    tiles = E * parts * cdiv(N // parts, BN) * cdiv(K, BK)
    launch(
        _weights_kernel,
        tiles,
        block,
        ragged_descriptor(dy, [BM, BN]) if dy_tma else dy,
        ragged_descriptor(x, [BM, BK]) if x_tma else x,
        out,
        offsets,
        tiles,
        N=N,
        K=K,
        PARTS=parts,
        DY_TMA=dy_tma,
        X_TMA=x_tma,
    )


def _launch_rows(
    x: Any,
    w: Any,
    u: Any,
    b: Any,
    offsets: Any,
    out: Any,
    scale: float,
    sizes: tuple[int, int, int],
    *,
    parts: int,
    transposed: bool,
) -> None:
    N, K, rank = sizes
    if not x.shape[0]:
        return
    block = block_of("narrow" if N <= 64 else "rows_low_rank" if rank else "rows", x)
    block = block._replace(BN=min(block.BN, padded(N)))
    BM, BN, BK = block[:3]
    # A descriptor does not stop at the end of a part.
    x_tma = has_descriptor(x) and (parts == 1 or K // parts % BK == 0)
    w_tma = has_descriptor(w)
    E = w.shape[0]
    launch(
        _rows_kernel,
        (cdiv(x.shape[0], BM) + E) * parts * cdiv(N, BN),
        block,
        descriptor(x, [BM, BK]) if x_tma else x,
        descriptor(w, [BK, BN] if transposed else [BN, BK]) if w_tma else w,
        u,
        b,
        out,
        offsets,
        scale,
        E,
        N=N,
        K=K,
        R=rank,
        PARTS=parts,
        U_PARTS=u.shape[1] // rank if rank else 1,
        BR=padded(rank),
        TRANSPOSED=transposed,
        X_TMA=x_tma,
        W_TMA=w_tma,
        EXPERTS=power_of_two(E),
    )


@triton.jit(do_not_specialize=["E"])
def _rows_kernel(
    x, w, u, b, out, offsets, scale, E,
    N: tl.constexpr, K: tl.constexpr, R: tl.constexpr, PARTS: tl.constexpr, U_PARTS: tl.constexpr, BR: tl.constexpr,
    TRANSPOSED: tl.constexpr, X_TMA: tl.constexpr, W_TMA: tl.constexpr, EXPERTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = (N + BN - 1) // BN
    ends = tile_ends(offsets, E, PARTS * COLUMNS, BM, EXPERTS)
    for tile in tl.range(tl.program_id(0), tl.max(ends), tl.num_programs(0), flatten=FLAT):
        expert, row, end, column = locate(tile, ends, offsets, PARTS * COLUMNS, BM)
        part = column // COLUMNS if PARTS > 1 else 0
        column = column % COLUMNS * BN
        first = part * (K // PARTS)
        stop = first + K // PARTS
        sums = tl.zeros((BM, BN), tl.float32)
        for k in range(first, stop, BK):
            left = load_tile(x, X_TMA, row, k, end, stop, K, BM, BK)
            if TRANSPOSED:
                right = load_tile(w, W_TMA, expert * K + k, column, expert * K + stop, N, N, BK, BN)
            else:
                right = load_tile(w, W_TMA, expert * N + column, k, expert * N + N, K, K, BN, BK).T
            sums = tl.dot(left, right, sums, input_precision="ieee")
        if R:
            columns = column + tl.arange(0, BN)
            left, right = load_low_rank(u, b, expert, row, end, columns, N, R, U_PARTS, TRANSPOSED, BM, BR)
            sums = tl.dot(left, right, sums, input_precision="ieee")
        store_tile(out, sums * scale, row, part * N + column, end, part * N + N, PARTS * N, BM, BN)


@triton.jit(do_not_specialize=["tiles"])
def _weights_kernel(
    dy, x, out, offsets, tiles,
    N: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr, DY_TMA: tl.constexpr, X_TMA: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    PART: tl.constexpr = N // PARTS
    TILES_N: tl.constexpr = (PART + BN - 1) // BN
    TILES_K: tl.constexpr = (K + BK - 1) // BK
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLAT):
        n = tile % TILES_N * BN
        k = tile // TILES_N % TILES_K * BK
        part = tile // (TILES_N * TILES_K) % PARTS
        expert = tile // (TILES_N * TILES_K * PARTS)
        start = tl.load(offsets + expert)
        end = tl.load(offsets + expert + 1)
        sums = tl.zeros((BN, BK), tl.float32)
        for row in range(start, end, BM):
            left = load_rows(dy, DY_TMA, row, part * PART + n, start, end, N, N, BM, BN)
            right = load_rows(x, X_TMA, row, part * K + k, start, end, PARTS * K, PARTS * K, BM, BK)
            sums = tl.dot(left.T, right, sums, input_precision="ieee")
        first = expert * N + part * PART
        store_tile(out, sums, first + n, k, first + PART, K, K, BN, BK)
