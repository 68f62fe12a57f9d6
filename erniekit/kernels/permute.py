"""Rows of tokens sorted by expert, and back: gathers without atomics in both passes, sums in float32.

A token t has k experts, so pair t * k + j is its j-th. `order` int32 [T * k] lists the pairs sorted by expert; `slots`
int32 [T, k] is the inverse, the place of each pair in that order: order[slots[t, j]] == t * k + j.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from erniekit.kernels.choice import form_of
from erniekit.kernels.tensors import needs_gradient, numpy_view
from erniekit.kernels.triton.runtime import pointer

# Rows of the CPU form that are in the cache at a time.
_CHUNK_BYTES = 1 << 20


def permute(x: Tensor, order: Tensor, slots: Tensor) -> Tensor:
    """[T, width] -> [T * k, width]: out[i] = x[order[i] // k]. The k gradients of a token are added in float32."""
    rows: Tensor = _Permute.apply(x, order, slots)
    return rows


def unpermute(y: Tensor, order: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """[T * k, width] -> [T, width]: out[t] = sum of weights[t, j] * y[slots[t, j]] over j, added in float32.

    `weights` float32 [T, k]. The output and the gradient of `y` have the type of `y`.
    """
    sums: Tensor = _Unpermute.apply(y, order, slots, weights)
    return sums


def sort_by_expert(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort pairs by their expert; pairs of an expert stay in order. No host synchronisation on a GPU.

    `experts` int64 [T, k], each below `num_experts`. Returns `order` int32 [T * k], `slots` int32 [T, k] and `offsets`
    int32 [num_experts + 1], the first row of each expert and the number of rows.
    """
    form = form_of("permute")
    if form == "triton":
        return _triton_sort(experts, num_experts)
    return _sort_on_cpu(experts, num_experts) if form == "cpu" else _plain_sort(experts, num_experts)


class _Permute(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return _copy_rows(x, order, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensor()
        return _sum_rows(grad, slots, None), None, None


class _Unpermute(PyLayer):
    @staticmethod
    def forward(ctx: Any, y: Tensor, order: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(y, order, slots, weights)
        ctx.needs_gradient = needs_gradient(y, weights)
        return _sum_rows(y, slots, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        for_y, for_weights = ctx.needs_gradient
        grad_y, grad_weights = _unpermute_gradients(grad, *ctx.saved_tensor())
        return grad_y if for_y else None, None, None, grad_weights if for_weights else None


def _copy_rows(x: Tensor, order: Tensor, slots: Tensor) -> Tensor:
    if form_of("permute") != "triton":
        return paddle.gather(x, order // slots.shape[1])
    from erniekit.kernels.triton.permute import copy_rows

    rows = paddle.empty([order.shape[0], x.shape[1]], x.dtype)
    copy_rows(pointer(x.contiguous()), pointer(slots), pointer(rows))
    return rows


def _sum_rows(y: Tensor, slots: Tensor, weights: Tensor | None) -> Tensor:
    form = form_of("permute")
    if form != "triton":
        return (_sum_on_cpu if form == "cpu" else _plain_sum)(y, slots, weights)
    from erniekit.kernels.triton.permute import sum_rows

    sums = paddle.empty([slots.shape[0], y.shape[1]], y.dtype)
    scales = None if weights is None else pointer(weights.contiguous())
    sum_rows(pointer(y.contiguous()), pointer(slots), scales, pointer(sums))
    return sums


def _unpermute_gradients(
    grad: Tensor, y: Tensor, order: Tensor, slots: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    form = form_of("permute")
    if form == "cpu":
        return _gradients_on_cpu(grad, y, slots, weights)
    if form != "triton":
        return _plain_gradients(grad, y, order, slots, weights)
    from erniekit.kernels.triton.permute import unpermute_backward

    y, weights = y.contiguous(), weights.contiguous()
    grad_y, grad_weights = paddle.empty_like(y), paddle.empty_like(weights)
    tensors = grad.contiguous(), y, slots, weights, grad_y, grad_weights
    unpermute_backward(*(pointer(tensor) for tensor in tensors))
    return grad_y, grad_weights


def _triton_sort(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    from erniekit.kernels.triton.permute import blocks_of_pairs, sort_by_expert

    pairs = experts.shape[0] * experts.shape[1]
    order, slots = paddle.empty([pairs], "int32"), paddle.empty(experts.shape, "int32")
    offsets = paddle.empty([num_experts + 1], "int32")
    counts = paddle.empty([num_experts, blocks_of_pairs(pairs)], "int32")
    buffers = counts, paddle.empty_like(counts), paddle.empty([num_experts], "int32")
    sort_by_expert(*(pointer(tensor) for tensor in (experts.contiguous(), order, slots, offsets, *buffers)))
    return order, slots, offsets


def _plain_sort(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """`sort_by_expert` with counts of one-hot vectors."""
    flat = experts.reshape([-1, 1])
    is_expert = (flat == paddle.arange(num_experts)).astype("int64")
    counts = is_expert.sum(0)
    ends = counts.cumsum()
    # The rank of a pair among the pairs of its expert, after all pairs of the experts before it.
    slots = ((is_expert.cumsum(0) - 1 + ends - counts) * is_expert).sum(1)
    order = paddle.argsort(slots)
    offsets = paddle.concat([paddle.zeros([1], "int64"), ends])
    return order.astype("int32"), slots.reshape(experts.shape).astype("int32"), offsets.astype("int32")


def _plain_sum(y: Tensor, slots: Tensor, weights: Tensor | None) -> Tensor:
    tokens, top_k = slots.shape
    rows = paddle.gather(y, slots.reshape([-1])).reshape([tokens, top_k, y.shape[1]]).astype("float32")
    return (rows if weights is None else rows * weights.unsqueeze(2)).sum(1).astype(y.dtype)


def _plain_gradients(
    grad: Tensor, y: Tensor, order: Tensor, slots: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    tokens, top_k = slots.shape
    wide = grad.astype("float32")
    pair_weights = paddle.gather(weights.reshape([-1]), order).unsqueeze(1)
    grad_y = (paddle.gather(wide, order // top_k) * pair_weights).astype(y.dtype)
    rows = paddle.gather(y, slots.reshape([-1])).reshape([tokens, top_k, y.shape[1]]).astype("float32")
    return grad_y, paddle.matmul(rows, wide.unsqueeze(2)).squeeze(2)


def _sort_on_cpu(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    flat = numpy_view(experts).reshape(-1)
    # numpy sorts integers of one or two bytes by their digits.
    order = np.argsort(flat.astype(np.min_scalar_type(num_experts)), kind="stable").astype(np.int32)
    slots = np.empty_like(order)
    slots[order] = np.arange(len(order), dtype=np.int32)
    offsets = np.zeros(num_experts + 1, np.int32)
    np.cumsum(np.bincount(flat, minlength=num_experts), out=offsets[1:])
    return paddle.to_tensor(order), paddle.to_tensor(slots.reshape(experts.shape)), paddle.to_tensor(offsets)


def _sum_on_cpu(y: Tensor, slots: Tensor, weights: Tensor | None) -> Tensor:
    sums = paddle.empty([slots.shape[0], y.shape[1]], y.dtype)
    rows, index, out = numpy_view(y), numpy_view(slots), numpy_view(sums)
    for part in _chunks(slots, y):
        if weights is None:
            np.sum(rows[index[part]], axis=1, out=out[part])
        else:
            np.matmul(numpy_view(weights)[part, None], rows[index[part]], out=out[part, None])
    return sums


def _gradients_on_cpu(grad: Tensor, y: Tensor, slots: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    grad_y, grad_weights = paddle.empty_like(y), paddle.empty_like(weights)
    upstream, rows, index, scales = (
        numpy_view(grad.contiguous()),
        numpy_view(y),
        numpy_view(slots),
        numpy_view(weights),
    )
    out, out_weights = numpy_view(grad_y), numpy_view(grad_weights)
    for part in _chunks(slots, y):
        np.matmul(rows[index[part]], upstream[part, :, None], out=out_weights[part, :, None])
        out[index[part]] = scales[part, :, None] * upstream[part, None]
    return grad_y, grad_weights


def _chunks(slots: Tensor, y: Tensor) -> Iterator[slice]:
    """Slices of the tokens."""
    tokens, top_k = slots.shape
    step = max(1, _CHUNK_BYTES // (top_k * y.shape[1] * y.element_size()))
    return (slice(start, start + step) for start in range(0, tokens, step))
