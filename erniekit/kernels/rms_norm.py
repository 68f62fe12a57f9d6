"""Root-mean-square normalisation, with or without a residual added before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from erniekit.kernels.choice import form_of
from erniekit.kernels.tensors import needs_gradient, numpy_view
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
    """RMSNorm from operators that every device and type has; the reference for the other forms."""
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
        ctx.needs_gradient = needs_gradient(x, weight)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        for_x, for_weight = ctx.needs_gradient
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
        ctx.needs_gradient = needs_gradient(x, residual, weight)
        return total, out

    @staticmethod
    def backward(
        ctx: Any, grad_total: Tensor, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        for_x, for_residual, for_weight = ctx.needs_gradient
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
    """Both passes with numpy over the memory of the tensors.

    Paddle's broadcasting products and column sums are slow on CPU: at [4096, 512] the composed forward takes
    six times as long as this one (`tools/bench/kernels.py`). Operands of sums and all results are in memory that Paddle
    allocates: the alignment of numpy's memory varies, which changes the order of sums in the math library.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        values = numpy_view(x)
        scale = numpy_view(paddle.empty([x.shape[0]]))
        squares = np.einsum("td,td->t", values, values)
        np.divide(1.0, np.sqrt(squares / values.shape[1] + np.float32(eps)), out=scale)
        ctx.save_for_backward(x, weight)
        ctx.needs_gradient = needs_gradient(x, weight)
        ctx.scale = scale
        output = paddle.empty_like(x)
        result = np.multiply(values, scale[:, None], out=numpy_view(output))
        result *= numpy_view(weight)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensor()
        values, upstream, scale = numpy_view(x), numpy_view(grad.contiguous()), ctx.scale
        product = np.multiply(upstream, values, out=numpy_view(paddle.empty_like(x)))
        for_x, for_weight = ctx.needs_gradient
        grad_weight = None
        if for_weight:
            grad_weight = paddle.empty_like(weight)
            np.matmul(scale, product, out=numpy_view(grad_weight))
        if not for_x:
            return None, grad_weight
        # Per row: the factor of x in the gradient, scale^3 * mean(gradient * weight * x).
        share = (product @ numpy_view(weight)) * scale**3 / values.shape[1]
        grad_x = paddle.empty_like(x)
        result = np.multiply(upstream, numpy_view(weight), out=numpy_view(grad_x))
        result *= scale[:, None]
        result -= np.multiply(values, share[:, None], out=product)
        return grad_x, grad_weight
