"""The grouped products of GPUs, by Triton and by Paddle, and which form this process uses."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import Tensor
from paddle.incubate.nn.functional.batched_gemm import batched_gemm

from erniekit.kernels.choice import form_of
from erniekit.kernels.grouped_gemm import (
    ExpertRows,
    GroupedProducts,
    LowRank,
    PlainProducts,
    UnfusedProducts,
    dense,
    parts_of,
    scaled,
)
from erniekit.kernels.quantize import Weight
from erniekit.kernels.triton.runtime import pointer


class PaddleProducts(UnfusedProducts):
    """Paddle's `batched_gemm`, which loops over experts on the host and so waits for their counts."""

    def gemm(
        self,
        x: Tensor,
        weight: Weight,
        rows: ExpertRows,
        low_rank: LowRank | None = None,
        *,
        scale: float = 1.0,
    ) -> Tensor:
        output = self._product(x, dense(weight), rows, transpose=True)
        if low_rank is not None:
            parts = low_rank.rows.shape[1] // low_rank.matrices.shape[2]
            pairs = zip(
                paddle.split(low_rank.rows, parts, axis=1), parts_of(low_rank.matrices, parts), strict=True
            )
            terms = [self._product(part, matrix, rows, transpose=True) for part, matrix in pairs]
            output = output + paddle.concat(terms, axis=1)
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
        pairs = zip(paddle.split(dy, parts, axis=1), parts_of(dense(weight), parts), strict=True)
        products = [self._product(part, matrix, rows, transpose=False) for part, matrix in pairs]
        output = paddle.concat(products, axis=1)
        if low_rank is not None:
            output = output + self._product(low_rank.rows, low_rank.matrices, rows, transpose=False)
        return scaled(output, scale)

    def dw(self, dy: Tensor, x: Tensor, rows: ExpertRows, *, parts: int = 1) -> Tensor:
        active = [number for number, count in enumerate(rows.counts) if count]
        output = paddle.zeros([len(rows.counts), dy.shape[1], x.shape[1] // parts], x.dtype)
        if not active:
            return output
        counts = [rows.counts[number] for number in active]
        pairs = zip(paddle.split(dy, parts, axis=1), paddle.split(x, parts, axis=1), strict=True)
        products = [
            batched_gemm(part.contiguous(), columns.contiguous(), counts, trans_lhs=True)
            for part, columns in pairs
        ]
        gradient = paddle.concat(products, axis=1)
        if len(active) == len(rows.counts):
            return gradient
        return paddle.scatter(output, paddle.to_tensor(active), gradient)

    def _product(self, x: Tensor, weight: Tensor, rows: ExpertRows, *, transpose: bool) -> Tensor:
        active = [number for number, count in enumerate(rows.counts) if count]
        if not active:
            return paddle.zeros([0, weight.shape[1 if transpose else 2]], x.dtype)
        if len(active) < len(rows.counts):
            weight = paddle.index_select(weight, paddle.to_tensor(active))
        counts = [rows.counts[number] for number in active]
        return batched_gemm(x.contiguous(), weight.contiguous(), counts, trans_rhs=transpose)


class TritonProducts:
    """Our Triton kernels. Nothing waits for the counts of the experts."""

    def gemm(
        self,
        x: Tensor,
        weight: Weight,
        rows: ExpertRows,
        low_rank: LowRank | None = None,
        *,
        scale: float = 1.0,
    ) -> Tensor:
        from erniekit.kernels.triton.grouped_gemm import grouped_gemm

        out = paddle.empty([x.shape[0], weight.shape[1]], x.dtype)
        grouped_gemm(
            _pointer(x),
            _pointer(dense(weight)),
            _pointer(rows.offsets),
            _pointer(out),
            _pointers(low_rank),
            scale=scale,
        )
        return out

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
        from erniekit.kernels.triton.grouped_gemm import grouped_gemm_dx

        out = paddle.empty([dy.shape[0], parts * weight.shape[2]], dy.dtype)
        grouped_gemm_dx(
            _pointer(dy),
            _pointer(dense(weight)),
            _pointer(rows.offsets),
            _pointer(out),
            _pointers(low_rank),
            scale=scale,
        )
        return out

    def dw(self, dy: Tensor, x: Tensor, rows: ExpertRows, *, parts: int = 1) -> Tensor:
        from erniekit.kernels.triton.grouped_gemm import grouped_gemm_dw

        out = paddle.empty([rows.offsets.shape[0] - 1, dy.shape[1], x.shape[1] // parts], x.dtype)
        grouped_gemm_dw(_pointer(dy), _pointer(x), _pointer(rows.offsets), _pointer(out))
        return out

    def gate_up(
        self, x: Tensor, weight: Weight, rows: ExpertRows, low_rank: LowRank | None = None
    ) -> tuple[Tensor, Tensor]:
        from erniekit.kernels.triton.grouped_swiglu import grouped_gate_up

        h = paddle.empty([x.shape[0], weight.shape[1]], x.dtype)
        a = paddle.empty([x.shape[0], weight.shape[1] // 2], x.dtype)
        grouped_gate_up(
            _pointer(x),
            _pointer(dense(weight)),
            _pointer(rows.offsets),
            _pointer(h),
            _pointer(a),
            _pointers(low_rank),
        )
        return h, a

    def down_dx(
        self, dy: Tensor, weight: Weight, h: Tensor, rows: ExpertRows, low_rank: LowRank | None = None
    ) -> tuple[Tensor, Tensor]:
        from erniekit.kernels.triton.grouped_swiglu import grouped_down_dx

        dh = paddle.empty_like(h)
        a = paddle.empty([h.shape[0], h.shape[1] // 2], h.dtype)
        grouped_down_dx(
            _pointer(dy),
            _pointer(dense(weight)),
            _pointer(h),
            _pointer(rows.offsets),
            _pointer(dh),
            _pointer(a),
            _pointers(low_rank),
        )
        return dh, a


_FORMS: dict[str, GroupedProducts] = {
    "plain": PlainProducts(),
    "paddle": PaddleProducts(),
    "triton": TritonProducts(),
}


def products() -> GroupedProducts:
    """The grouped products of the form that this process uses."""
    return _FORMS[form_of("grouped_gemm")]


def _pointer(tensor: Tensor) -> Any:
    return pointer(tensor.contiguous())


def _pointers(low_rank: LowRank | None) -> tuple[Any, Any] | None:
    return None if low_rank is None else (_pointer(low_rank.rows), _pointer(low_rank.matrices))
