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
        values = np.from_dlpack(x.detach())
        scale = 1.0 / np.sqrt(np.einsum("td,td->t", values, values) / values.shape[1] + np.float32(eps))
        ctx.save_for_backward(x, weight)
        # Asked here: under recomputation the tensor that comes back out of the context no longer knows.
        ctx.trains_weight = not weight.stop_gradient
        ctx.scale = scale[:, None]
        output = values * ctx.scale
        output *= np.from_dlpack(weight.detach())
        return paddle.from_dlpack(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight = ctx.saved_tensor()
        upstream: np.ndarray = np.from_dlpack(grad.detach().contiguous())
        normal: np.ndarray = np.from_dlpack(x.detach()) * ctx.scale
        inner: np.ndarray = upstream * np.from_dlpack(weight.detach())
        dot = np.einsum("td,td->t", inner, normal)[:, None] / normal.shape[1]
        grad_weight = None
        if ctx.trains_weight:
            grad_weight = paddle.from_dlpack((upstream * normal).sum(0))
        normal *= dot
        inner -= normal
        inner *= ctx.scale
        return paddle.from_dlpack(inner), grad_weight
