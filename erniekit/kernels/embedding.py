"""Embedding, with a gradient that is summed in float32."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.kernels.choice import form_of
from erniekit.kernels.triton.runtime import pointer

_ROWS = 1024


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """The rows `ids`, int64 [T], of `weight` [vocab, H].

    The gradient of an id that occurs several times is summed in float32 and rounded once, in the same order in every
    run. On a GPU, Paddle's own gradient adds atomically in the dtype of the weight: in bfloat16, 4,000 equal gradients
    lose most of their sum. On CPU it adds in float32, one token after the other.
    """
    if form_of("embedding") == "cpu" or weight.stop_gradient:
        return F.embedding(ids, weight)
    return _Embedding.apply(weight, ids)


class _Embedding(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensor()
        if form_of("embedding") == "triton":
            return _triton_gradient(grad, ids, ctx.shape), None
        return _plain_gradient(grad, ids, ctx.shape), None


def _triton_gradient(grad: Tensor, ids: Tensor, shape: list[int]) -> Tensor:
    from erniekit.kernels.triton.embedding import embedding_backward

    first, last = (paddle.empty(ids.shape, "int32") for _ in range(2))
    out = paddle.zeros(shape, grad.dtype)
    embedding_backward(*(pointer(x) for x in (grad.contiguous(), ids.contiguous(), first, last, out)))
    return out


def _plain_gradient(grad: Tensor, ids: Tensor, shape: list[int]) -> Tensor:
    """Every token gets the sum of all tokens of its id, by products with a matrix of equal ids."""
    out = paddle.zeros(shape, grad.dtype)
    if not len(ids):
        return out
    wide = grad.astype("float32")
    sums = []
    for start in range(0, len(ids), _ROWS):
        same = ids[start : start + _ROWS].unsqueeze(1) == ids.unsqueeze(0)
        sums.append(paddle.matmul(same.astype("float32"), wide))
    return paddle.index_put_(out, (ids,), paddle.concat(sums).astype(grad.dtype))
