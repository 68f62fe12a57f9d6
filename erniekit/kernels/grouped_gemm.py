"""Products of rows that are sorted by expert with one matrix per expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.kernels.swiglu import plain_swiglu_backward


class ExpertRows:
    """Where the rows of each expert are, among `size` rows that are sorted by expert.

    offsets: int32 [E + 1] on the device. counts: the number of rows of each expert, if the host knows them; otherwise
    asking for them waits for the device.
    """

    def __init__(self, offsets: Tensor, size: int, counts: Sequence[int] | None = None) -> None:
        self.offsets, self.size = offsets, size
        if counts is not None:
            self.counts = list(counts)

    @cached_property
    def counts(self) -> list[int]:
        """The number of rows of each expert, on the host."""
        return np.diff(self.offsets.numpy()).tolist()

    @classmethod
    def of(cls, counts: Sequence[int]) -> ExpertRows:
        """Rows of which the host knows the counts."""
        return cls(paddle.to_tensor(np.cumsum([0, *counts]).astype(np.int32)), sum(counts), counts)


class LowRank(NamedTuple):
    """A term of low rank that a product adds: rows [n, parts * r] and a matrix of each expert.

    In `GroupedProducts.gemm` the matrices are [E, N, r], and the columns of each of the `parts` equal parts of N use r
    columns of the rows. In `dx` they are [E, parts * r, K].
    """

    rows: Tensor
    matrices: Tensor


class GroupedProducts(Protocol):
    """The grouped products of one form. x [n, K] and dy [n, N] are sorted by expert, weight is [E, N, K].

    Sums are float32. The rows of an expert may be none.
    """

    def gemm(
        self,
        x: Tensor,
        weight: Tensor,
        rows: ExpertRows,
        low_rank: LowRank | None = None,
        *,
        scale: float = 1.0,
    ) -> Tensor:
        """scale * x_e weight_e^T, and the term of low rank -> [n, N]."""
        ...

    def dx(
        self,
        dy: Tensor,
        weight: Tensor,
        rows: ExpertRows,
        low_rank: LowRank | None = None,
        *,
        parts: int = 1,
        scale: float = 1.0,
    ) -> Tensor:
        """scale * dy_e weight_e, and the term of low rank -> [n, K].

        With parts, a product for each of the equal parts of N -> [n, parts * K].
        """
        ...

    def dw(self, dy: Tensor, x: Tensor, rows: ExpertRows, *, parts: int = 1) -> Tensor:
        """dy_e^T x_e -> [E, N, K], in the dtype of x; zeros for an expert without rows.

        With parts, each of the equal parts of N has its own K columns of x [n, parts * K].
        """
        ...

    def gate_up(
        self, x: Tensor, weight: Tensor, rows: ExpertRows, low_rank: LowRank | None = None
    ) -> tuple[Tensor, Tensor]:
        """h = `gemm` -> [n, 2F], and silu(h[:, :F]) * h[:, F:] -> [n, F]."""
        ...

    def down_dx(
        self, dy: Tensor, weight: Tensor, h: Tensor, rows: ExpertRows, low_rank: LowRank | None = None
    ) -> tuple[Tensor, Tensor]:
        """The gradient of h [n, 2F] if `dx` is the gradient of silu(gate) * up, and silu(gate) * up [n, F]."""
        ...


class PlainProducts:
    """A loop over experts: the reference, and the form for CPUs, which have no grouped product."""

    def gemm(
        self,
        x: Tensor,
        weight: Tensor,
        rows: ExpertRows,
        low_rank: LowRank | None = None,
        *,
        scale: float = 1.0,
    ) -> Tensor:
        parts = [
            paddle.matmul(part, matrix, transpose_y=True)
            for part, matrix in zip(_split(x, rows), _active(weight, rows), strict=True)
        ]
        if low_rank is not None:
            parts = [
                part.add_(_low_rank(part_rows, matrix))
                for part, part_rows, matrix in zip(
                    parts, _split(low_rank.rows, rows), _active(low_rank.matrices, rows), strict=True
                )
            ]
        return scaled(_concat(parts, x, weight.shape[1]), scale)

    def dx(
        self,
        dy: Tensor,
        weight: Tensor,
        rows: ExpertRows,
        low_rank: LowRank | None = None,
        *,
        parts: int = 1,
        scale: float = 1.0,
    ) -> Tensor:
        if parts > 1:
            pairs = zip(paddle.split(dy, parts, axis=1), parts_of(weight, parts), strict=True)
            return paddle.concat([self.dx(part, matrix, rows, scale=scale) for part, matrix in pairs], axis=1)
        products = list(self._dx_parts(dy, weight, rows, low_rank))
        return scaled(_concat(products, dy, weight.shape[2]), scale)

    def dw(self, dy: Tensor, x: Tensor, rows: ExpertRows, *, parts: int = 1) -> Tensor:
        if parts > 1:
            pairs = zip(paddle.split(dy, parts, axis=1), paddle.split(x, parts, axis=1), strict=True)
            return paddle.concat([self.dw(part, columns, rows) for part, columns in pairs], axis=1)
        products = [
            paddle.matmul(left, right, transpose_x=True)
            for left, right in zip(_split(dy, rows), _split(x, rows), strict=True)
        ]
        if len(products) == len(rows.counts):
            return paddle.stack(products)
        empty = paddle.zeros([dy.shape[1], x.shape[1]], x.dtype)
        remaining = iter(products)
        return paddle.stack([next(remaining) if count else empty for count in rows.counts])

    def gate_up(
        self, x: Tensor, weight: Tensor, rows: ExpertRows, low_rank: LowRank | None = None
    ) -> tuple[Tensor, Tensor]:
        h = self.gemm(x, weight, rows, low_rank)
        gate, up = paddle.split(h, 2, axis=1)
        return h, F.silu(gate) * up

    def down_dx(
        self, dy: Tensor, weight: Tensor, h: Tensor, rows: ExpertRows, low_rank: LowRank | None = None
    ) -> tuple[Tensor, Tensor]:
        gradients, activations = [], []
        products = self._dx_parts(dy, weight, rows, low_rank)
        # An expert at a time, while its rows are in the cache.
        for da, part in zip(products, _split(h, rows), strict=True):
            gate, up = paddle.split(part, 2, axis=1)
            grad_gate, grad_up, activation = plain_swiglu_backward(gate, up, da)
            gradients.append(paddle.concat([grad_gate, grad_up], axis=1))
            activations.append(activation)
        return _concat(gradients, dy, h.shape[1]), _concat(activations, dy, weight.shape[2])

    def _dx_parts(
        self, dy: Tensor, weight: Tensor, rows: ExpertRows, low_rank: LowRank | None
    ) -> Iterator[Tensor]:
        terms = None
        if low_rank is not None:
            terms = zip(_split(low_rank.rows, rows), _active(low_rank.matrices, rows), strict=True)
        for part, matrix in zip(_split(dy, rows), _active(weight, rows), strict=True):
            product = paddle.matmul(part, matrix)
            if terms is not None:
                product.add_(paddle.matmul(*next(terms)))
            yield product


def scaled(x: Tensor, scale: float) -> Tensor:
    """x * scale, in the memory of x."""
    return x if scale == 1.0 else x.scale_(scale)


def parts_of(weight: Tensor, parts: int) -> list[Tensor]:
    """[E, N / parts, K] of [E, N, K] for each of the equal parts of N."""
    experts, width, inner = weight.shape
    return [weight] if parts == 1 else weight.reshape([experts, parts, width // parts, inner]).unbind(1)


def _split(x: Tensor, rows: ExpertRows) -> list[Tensor]:
    """The rows of each expert that has some."""
    counts = [count for count in rows.counts if count]
    if not counts:
        return []
    return [x] if len(counts) == 1 else paddle.split(x, counts)


def _active(weight: Tensor, rows: ExpertRows) -> Iterator[Tensor]:
    """The matrices [N, K] of the experts that have rows."""
    active = [number for number, count in enumerate(rows.counts) if count]
    if not weight.place.is_cpu_place():
        return (weight[number] for number in active)
    # Paddle copies a slice on CPU; this is a view of the same memory.
    memory = np.from_dlpack(weight.detach())
    return (paddle.utils.dlpack.from_dlpack(memory[number]) for number in active)


def _low_rank(rows: Tensor, matrix: Tensor) -> Tensor:
    """[m, parts * r] and [N, r] -> [m, N]; the columns of each part of N use their r columns of the rows."""
    rank = matrix.shape[1]
    parts = rows.shape[1] // rank
    if parts == 1:
        return paddle.matmul(rows, matrix, transpose_y=True)
    pairs = zip(paddle.split(rows, parts, axis=1), paddle.split(matrix, parts), strict=True)
    return paddle.concat([paddle.matmul(row, part, transpose_y=True) for row, part in pairs], axis=1)


def _concat(parts: list[Tensor], like: Tensor, width: int) -> Tensor:
    if not parts:
        return paddle.zeros([0, width], like.dtype)
    return parts[0] if len(parts) == 1 else paddle.concat(parts)
