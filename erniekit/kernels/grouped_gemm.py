"""Products of rows that are sorted by expert with one matrix per expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import paddle
from paddle import Tensor

from erniekit.kernels.quantize import QuantizedWeight, Weight, dequantize
from erniekit.kernels.swiglu import plain_swiglu_backward, swiglu


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
        """Rows with counts that the host knows."""
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

    Sums are float32. The rows of an expert may be none. A quantized weight is dequantized for the product.
    """

    def gemm(
        self,
        x: Tensor,
        weight: Weight,
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
        weight: Weight,
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
        self, x: Tensor, weight: Weight, rows: ExpertRows, low_rank: LowRank | None = None
    ) -> tuple[Tensor, Tensor]:
        """h = `gemm` -> [n, 2F], and silu(h[:, :F]) * h[:, F:] -> [n, F]."""
        ...

    def down_dx(
        self, dy: Tensor, weight: Weight, h: Tensor, rows: ExpertRows, low_rank: LowRank | None = None
    ) -> tuple[Tensor, Tensor]:
        """The gradient of h [n, 2F] if `dx` is the gradient of silu(gate) * up, and silu(gate) * up [n, F]."""
        ...


class UnfusedProducts(GroupedProducts):
    """SwiGLU as a separate step, for forms without it in their products."""

    def gate_up(
        self, x: Tensor, weight: Weight, rows: ExpertRows, low_rank: LowRank | None = None
    ) -> tuple[Tensor, Tensor]:
        h = self.gemm(x, weight, rows, low_rank)
        return h, swiglu(h)

    def down_dx(
        self, dy: Tensor, weight: Weight, h: Tensor, rows: ExpertRows, low_rank: LowRank | None = None
    ) -> tuple[Tensor, Tensor]:
        da = self.dx(dy, weight, rows, low_rank)
        gate, up = paddle.split(h, 2, axis=1)
        grad_gate, grad_up, activation = plain_swiglu_backward(gate, up, da)
        return paddle.concat([grad_gate, grad_up], axis=1), activation


class PlainProducts(UnfusedProducts):
    """A loop over experts: the reference, and the form for CPUs, which have no grouped product."""

    def gemm(
        self,
        x: Tensor,
        weight: Weight,
        rows: ExpertRows,
        low_rank: LowRank | None = None,
        *,
        scale: float = 1.0,
    ) -> Tensor:
        output = paddle.empty([x.shape[0], weight.shape[1]], x.dtype)
        for part, matrix, out in zip(_rows(x, rows), _active(weight, rows), _rows(output, rows), strict=True):
            paddle.matmul(part, matrix, transpose_y=True, out=out)
        if low_rank is not None:
            for part, matrix, out in zip(
                _rows(low_rank.rows, rows), _active(low_rank.matrices, rows), _rows(output, rows), strict=True
            ):
                out.add_(_low_rank(part, matrix))
        return scaled(output, scale)

    def dx(
        self,
        dy: Tensor,
        weight: Weight,
        rows: ExpertRows,
        low_rank: LowRank | None = None,
        *,
        parts: int = 1,
        scale: float = 1.0,
    ) -> Tensor:
        if parts > 1:
            pairs = zip(paddle.split(dy, parts, axis=1), parts_of(dense(weight), parts), strict=True)
            return paddle.concat([self.dx(part, matrix, rows, scale=scale) for part, matrix in pairs], axis=1)
        output = paddle.empty([dy.shape[0], weight.shape[2]], dy.dtype)
        for part, matrix, out in zip(
            _rows(dy, rows), _active(weight, rows), _rows(output, rows), strict=True
        ):
            paddle.matmul(part, matrix, out=out)
        if low_rank is not None:
            for part, matrix, out in zip(
                _rows(low_rank.rows, rows), _active(low_rank.matrices, rows), _rows(output, rows), strict=True
            ):
                out.add_(paddle.matmul(part, matrix))
        return scaled(output, scale)

    def dw(self, dy: Tensor, x: Tensor, rows: ExpertRows, *, parts: int = 1) -> Tensor:
        if parts > 1:
            pairs = zip(paddle.split(dy, parts, axis=1), paddle.split(x, parts, axis=1), strict=True)
            return paddle.concat([self.dw(part, columns, rows) for part, columns in pairs], axis=1)
        make = paddle.empty if all(rows.counts) else paddle.zeros
        output = make([len(rows.counts), dy.shape[1], x.shape[1]], x.dtype)
        for left, right, out in zip(_rows(dy, rows), _rows(x, rows), _active(output, rows), strict=True):
            paddle.matmul(left, right, transpose_x=True, out=out)
        return output


def scaled(x: Tensor, scale: float) -> Tensor:
    """x * scale, in the memory of x."""
    return x if scale == 1.0 else x.scale_(scale)


def dense(weight: Weight) -> Tensor:
    """The weight itself, or all of a quantized weight."""
    return dequantize(weight, weight.scales.dtype) if isinstance(weight, QuantizedWeight) else weight


def parts_of(weight: Tensor, parts: int) -> list[Tensor]:
    """[E, N / parts, K] of [E, N, K] for each of the equal parts of N."""
    experts, width, inner = weight.shape
    return [weight] if parts == 1 else weight.reshape([experts, parts, width // parts, inner]).unbind(1)


def _rows(x: Tensor, rows: ExpertRows) -> Iterator[Tensor]:
    """Views of the rows of each expert that has some."""
    ends = np.cumsum(rows.counts)
    return _views(x, [slice(end - count, end) for end, count in zip(ends, rows.counts, strict=True) if count])


def _active(weight: Weight, rows: ExpertRows) -> Iterator[Tensor]:
    """The matrices [N, K] of the experts that have rows: views, or dequantized one by one."""
    places = [number for number, count in enumerate(rows.counts) if count]
    if not isinstance(weight, QuantizedWeight):
        return _views(weight, places)
    parts = zip(_views(weight.codes, places), _views(weight.scales, places), strict=True)
    return (dense(QuantizedWeight(codes, scales)) for codes, scales in parts)


def _views(x: Tensor, places: Sequence[int | slice]) -> Iterator[Tensor]:
    """Parts of a tensor in its own memory."""
    if not x.place.is_cpu_place():
        return (x[place] for place in places)
    # Paddle copies a slice on CPU.
    memory = np.from_dlpack(x.detach())
    return (paddle.utils.dlpack.from_dlpack(memory[place]) for place in places)


def _low_rank(rows: Tensor, matrix: Tensor) -> Tensor:
    """[m, parts * r] and [N, r] -> [m, N]; the columns of each part of N use their r columns of the rows."""
    rank = matrix.shape[1]
    parts = rows.shape[1] // rank
    if parts == 1:
        return paddle.matmul(rows, matrix, transpose_y=True)
    pairs = zip(paddle.split(rows, parts, axis=1), paddle.split(matrix, parts), strict=True)
    return paddle.concat([paddle.matmul(row, part, transpose_y=True) for row, part in pairs], axis=1)
