"""Root-mean-square normalisation, with or without a residual added before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from erniekit.kernels.choice import form_of
from erniekit.kernels.triton.runtime import pointer


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis of [T, width]; statistics in float32."""
    form = form_of("rms_norm")
    if form == "triton":
        return _TritonRMSNorm.apply(x, weight, eps)
    if form == "paddle":
        return F.rms_norm(x, [x.shape[-1]], weight, eps)[0]
    if form == "cpu" and x.dtype == paddle.float32:
        return _CpuRMSNorm.apply(x, weight, eps)
    return plain_rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + residual` and its `rms_norm`, both [T, width]."""
    if form_of("rms_norm") == "triton":
        total, normal = _TritonAddRMSNorm.apply(x, residual, weight, eps)
        return total, normal
    total = x + residual
    return total, rms_norm(total, weight, eps)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The composed form, for every device and type; the reference of the others."""
    wide = x.astype("float32")
    scale = paddle.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return (wide * scale).astype(x.dtype) * weight


class _TritonRMSNorm(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        from erniekit.kernels.triton.rms_norm import rms_norm_forward

        x = x.contiguous()
        out, scale = paddle.empty_like(x), paddle.empty([x.shape[0]], "float32")
        rms_norm_forward(pointer(x), pointer(weight), eps, pointer(out), pointer(scale))
        ctx.save_for_backward(x, weight, scale)
        # Asked here: under recomputation the tensors that come back out of the context no longer know.
        ctx.wanted = not x.stop_gradient, not weight.stop_gradient
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        for_x, for_weight = ctx.wanted
        grad_x, grad_weight = _triton_gradients(ctx.saved_tensor(), grad, None, for_weight)
        return grad_x if for_x else None, grad_weight


class _TritonAddRMSNorm(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        from erniekit.kernels.triton.rms_norm import rms_norm_forward

        x, residual = x.contiguous(), residual.contiguous()
        total, out, scale = paddle.empty_like(x), paddle.empty_like(x), paddle.empty([x.shape[0]], "float32")
        rms_norm_forward(
            pointer(x), pointer(weight), eps, pointer(out), pointer(scale), pointer(residual), pointer(total)
        )
        ctx.save_for_backward(total, weight, scale)
        ctx.wanted = not x.stop_gradient, not residual.stop_gradient, not weight.stop_gradient
        return total, out

    @staticmethod
    def backward(
        ctx: Any, grad_total: Tensor, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        for_x, for_residual, for_weight = ctx.wanted
        grad_x, grad_weight = _triton_gradients(ctx.saved_tensor(), grad, grad_total, for_weight)
        return grad_x if for_x else None, grad_x if for_residual else None, grad_weight


def _triton_gradients(
    saved: tuple[Tensor, Tensor, Tensor], grad: Tensor, grad_total: Tensor | None, for_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of what was normalised and of the weight; `grad_total` is the gradient of the sum's other use."""
    from erniekit.kernels.triton.rms_norm import PROGRAMS, rms_norm_backward, sum_partial

    x, weight, scale = saved
    grad_x, partial = paddle.empty_like(x), None
    if for_weight:
        partial = paddle.empty([min(PROGRAMS, x.shape[0]), x.shape[1]], "float32")
    rms_norm_backward(
        pointer(grad.contiguous()),
        pointer(x),
        pointer(weight),
        pointer(scale),
        pointer(grad_x),
        None if partial is None else pointer(partial),
        None if grad_total is None else pointer(grad_total.contiguous()),
    )
    if partial is None:
        return grad_x, None
    grad_weight = paddle.empty_like(weight)
    sum_partial(pointer(partial), pointer(grad_weight))
    return grad_x, grad_weight


class _CpuRMSNorm(PyLayer):
    """Forward and backward by hand over numpy views of the tensors' memory.

    Paddle's broadcasting products and column sums are slow on CPU: at [4096, 512] the composed forward takes
    six times as long as this one (`tools/bench/kernels.py`).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        values = _view(x)
        scale = _view(paddle.empty([x.shape[0]]))
        squares = np.einsum("td,td->t", values, values)
        np.divide(1.0, np.sqrt(squares / values.shape[1] + np.float32(eps)), out=scale)
        ctx.save_for_backward(x, weight)
        # Asked here: under recomputation the tensor that comes back out of the context no longer knows.
        ctx.wanted = not x.stop_gradient, not weight.stop_gradient
        ctx.scale = scale
        output = paddle.empty_like(x)
        result = np.multiply(values, scale[:, None], out=_view(output))
        result *= _view(weight)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensor()
        values, upstream, scale = _view(x), _view(grad.contiguous()), ctx.scale
        product = np.multiply(upstream, values, out=_view(paddle.empty_like(x)))
        for_x, for_weight = ctx.wanted
        grad_weight = None
        if for_weight:
            grad_weight = paddle.empty_like(weight)
            np.matmul(scale, product, out=_view(grad_weight))
        if not for_x:
            return None, grad_weight
        # Per row: mean of gradient * weight * normalised x, times what brings x to its place in the sum below.
        share = (product @ _view(weight)) * scale**3 / values.shape[1]
        grad_x = paddle.empty_like(x)
        result = np.multiply(upstream, _view(weight), out=_view(grad_x))
        result *= scale[:, None]
        result -= np.multiply(values, share[:, None], out=product)
        return grad_x, grad_weight


def _view(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as numpy sees it.

    Operands of sums and all results are in memory that Paddle made: the alignment of numpy's changes from call to call,
    and with it the order in which the maths library adds.
    """
    return np.from_dlpack(tensor.detach())
