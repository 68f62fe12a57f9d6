"""Root-mean-square normalisation: the plain form, and the one that is fast on CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis of [T, width]; statistics in float32."""
    if x.place.is_cpu_place() and x.dtype == paddle.float32:
        return _CpuRMSNorm.apply(x, weight, eps)
    return plain_rms_norm(x, weight, eps)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The composed form, for every device and type; the reference of the other."""
    wide = x.astype("float32")
    scale = paddle.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return (wide * scale).astype(x.dtype) * weight


class _CpuRMSNorm(paddle.autograd.PyLayer):
    """Forward and backward by hand over numpy views of the tensors' memory.

    Paddle's broadcasting products and column sums are slow on CPU: at [4096, 512] the composed forward takes
    six times as long as this one (`tools/bench/kernels.py`).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        values = _view(x)
        scale = 1.0 / np.sqrt(np.einsum("td,td->t", values, values) / values.shape[1] + np.float32(eps))
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
        product = upstream * values
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
    """The tensor's memory as numpy sees it. Results are written into memory that Paddle made, never the other way
    round: numpy's is not aligned as the maths library wants it.
    """
    return np.from_dlpack(tensor.detach())
