"""Tiles of grouped products: which rows a tile has, how it is loaded and stored, and adapters of low rank."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.tools.ragged_tma import load_ragged

# Tiles of rows that are computed side by side, so that weights are read from the L2 cache.
_GROUP = 8


@triton.jit
def tile_ends(offsets, E, COLUMNS: tl.constexpr, BM: tl.constexpr, EXPERTS: tl.constexpr):
    """The number of tiles of the experts up to each one; EXPERTS is a power of two, at least E."""
    expert = tl.arange(0, EXPERTS)
    start = tl.load(offsets + expert, mask=expert < E, other=0)
    end = tl.load(offsets + expert + 1, mask=expert < E, other=0)
    return tl.cumsum((end - start + BM - 1) // BM * COLUMNS)


@triton.jit
def locate(tile, ends, offsets, COLUMNS: tl.constexpr, BM: tl.constexpr, GROUP: tl.constexpr = _GROUP):
    """Expert of a tile, first row, end of the expert's rows, and column of tiles."""
    is_before = ends <= tile
    expert = tl.sum(is_before.to(tl.int32))
    tile -= tl.max(tl.where(is_before, ends, 0))
    start = tl.load(offsets + expert)
    end = tl.load(offsets + expert + 1)
    first = tile // (GROUP * COLUMNS) * GROUP
    in_group = tl.minimum((end - start + BM - 1) // BM - first, GROUP)
    tile %= GROUP * COLUMNS
    return expert, start + (first + tile % in_group) * BM, end, tile // in_group


@triton.jit
def load_tile(x, TMA: tl.constexpr, row, column, end, width, stride, BR: tl.constexpr, BC: tl.constexpr):
    """[BR, BC] of a matrix, by a descriptor or a pointer; a pointer gives zeros after row `end` and `width` columns."""
    if TMA:
        return x.load([row, column])
    else:  # Triton compiles what follows a return.
        rows = tl.arange(0, BR)
        columns = tl.arange(0, BC)
        inside = (rows < end - row)[:, None] & (columns < width - column)[None, :]
        first = x + tl.cast(row, tl.int64) * stride + column
        return tl.load(first + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def load_rows(
    x, TMA: tl.constexpr, row, column, start, end, width, stride, BR: tl.constexpr, BC: tl.constexpr
):
    """[BR, BC] of the rows of one expert: zeros after its last row."""
    if TMA:
        return load_ragged(x, start, end - start, [row - start, column])
    else:
        return load_tile(x, False, row, column, end, width, stride, BR, BC)


@triton.jit
def store_tile(out, tile, row, column, end, width, stride, BR: tl.constexpr, BC: tl.constexpr):
    """Store [BR, BC], except rows from `end` and columns from `width` on."""
    rows = tl.arange(0, BR)
    columns = tl.arange(0, BC)
    inside = (rows < end - row)[:, None] & (columns < width - column)[None, :]
    first = out + tl.cast(row, tl.int64) * stride + column
    tl.store(first + rows[:, None] * stride + columns[None, :], tile.to(out.dtype.element_ty), mask=inside)


@triton.jit
def load_low_rank(
    u, b, expert, row, end, columns, N: tl.constexpr, R: tl.constexpr, PARTS: tl.constexpr, TRANSPOSED: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Factors of u b_e^T, or of u b_e if TRANSPOSED: [BM, rank] and [rank, columns].

    Each of PARTS equal parts of N has its own R columns of u: the second factor is zero where a column belongs to
    another part.
    """
    rank = tl.arange(0, PARTS * BR)
    rows = row + tl.arange(0, BM)
    part, rank = rank // BR, rank % BR
    inside = (rows < end)[:, None] & (rank < R)[None, :]
    place = u + rows.to(tl.int64)[:, None] * (PARTS * R) + (part * R + rank)[None, :]
    left = tl.load(place, mask=inside, other=0.0)
    inside = (
        (rank < R)[:, None] & (columns < N)[None, :] & (part[:, None] == (columns // (N // PARTS))[None, :])
    )
    place = b + expert.to(tl.int64) * (N * R)
    if TRANSPOSED:
        place += rank[:, None] * N + columns[None, :]
    else:
        place += rank[:, None] + columns[None, :] * R
    right = tl.load(place, mask=inside, other=0.0)
    return left, right
