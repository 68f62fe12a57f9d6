"""Embedding, with a gradient that is summed in float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.kernels.choice import form_of
from erniekit.kernels.triton.runtime import pointer
from erniekit.upload import Upload

_ROWS = 1024


class TokensById(NamedTuple):
    """`order` int32 [T]: tokens in a stable sort by id. `offsets` int32 [D + 1]: where each of the D ids that occur
    begins in `order`, and T."""

    order: Tensor
    offsets: Tensor


def sort_by_id(ids: np.ndarray, weight: Tensor, upload: Upload = paddle.to_tensor) -> TokensById | None:
    """The sorted tokens `ids` of a row, for the gradient of `weight`; None if the gradient does not need them.

    Sorted on the host, so that the device neither sorts nor searches.
    """
    if weight.stop_gradient or form_of("embedding") != "triton":
        return None
    order = np.argsort(ids, kind="stable")
    begins = np.flatnonzero(np.diff(ids[order], prepend=-1))
    offsets = np.append(begins, len(ids))
    return TokensById(upload(order.astype(np.int32)), upload(offsets.astype(np.int32)))


def embedding(ids: Tensor, weight: Tensor, by_id: TokensById | None = None) -> Tensor:
    """The rows `ids`, int64 [T], of `weight` [vocab, H]. by_id: from `sort_by_id`, for the gradient.

    The gradient of an id that occurs several times is summed in float32 and rounded once, in the same order in every
    run. On a GPU, Paddle's own gradient adds atomically in the dtype of the weight: in bfloat16, 4,000 equal gradients
    lose most of their sum. On CPU it adds in float32, one token after the other.
    """
    form = form_of("embedding")
    if form == "cpu" or weight.stop_gradient or not paddle.is_grad_enabled():
        return F.embedding(ids, weight)
    if form == "triton" and by_id is None:
        raise ValueError("the gradient of an embedding needs the tokens sorted by id")
    return _Embedding.apply(weight, ids, by_id)


class _Embedding(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, by_id: TokensById | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.by_id = weight.shape, by_id
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensor()
        if form_of("embedding") == "triton":
            return _triton_gradient(grad, ids, ctx.by_id, ctx.shape), None
        return _plain_gradient(grad, ids, ctx.shape), None


def _triton_gradient(grad: Tensor, ids: Tensor, by_id: TokensById, shape: list[int]) -> Tensor:
    from erniekit.kernels.triton.embedding import embedding_backward

    out = paddle.zeros(shape, grad.dtype)
    embedding_backward(*(pointer(x) for x in (grad.contiguous(), ids.contiguous(), *by_id, out)))
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
