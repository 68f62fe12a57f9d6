"""SwiGLU: the gated unit silu(gate) * up."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, _C_ops
from paddle.autograd import PyLayer

from erniekit.kernels.choice import form_of
from erniekit.kernels.tensors import needs_gradient
from erniekit.kernels.triton.runtime import pointer

_LOWEST = -80.0


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """`silu(gate) * up` of two tensors [n, F]; without `up`, of the halves of `gate` [n, 2F]."""
    form = form_of("swiglu")
    if form == "triton":
        return _TritonSwiglu.apply(gate) if up is None else _TritonSwigluOfTwo.apply(gate, up)
    if form == "paddle":
        return F.swiglu(gate, up)
    if up is None:
        gate, up = paddle.chunk(gate, 2, axis=-1)
    # On CPU about twice as fast as F.swiglu, forward and backward.
    return F.silu(_bounded(gate)) * up


def plain_swiglu_backward(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate and up, and `silu(gate) * up` computed again. All [n, F], without autograd."""
    silu = F.silu(gate)
    grad_gate = _C_ops.silu_grad(_bounded(gate), silu, grad * up)
    return grad_gate, grad * silu, silu.multiply_(up)


def _bounded(gate: Tensor) -> Tensor:
    """Paddle's gradient of silu on CPU is infinite below -87 and NaN below -88, where silu is zero in float32."""
    return paddle.clip(gate, min=_LOWEST)


class _TritonSwiglu(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from erniekit.kernels.triton.swiglu import swiglu_forward

        x = x.contiguous()
        ctx.save_for_backward(x)
        out = paddle.empty([x.shape[0], x.shape[1] // 2], x.dtype)
        swiglu_forward(pointer(x), None, pointer(out))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        from erniekit.kernels.triton.swiglu import swiglu_backward

        (x,) = ctx.saved_tensor()
        grad_x = paddle.empty_like(x)
        swiglu_backward(pointer(grad.contiguous()), pointer(x), None, pointer(grad_x), None)
        return grad_x


class _TritonSwigluOfTwo(PyLayer):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        from erniekit.kernels.triton.swiglu import swiglu_forward

        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.needs_gradient = needs_gradient(gate, up)
        out = paddle.empty_like(gate)
        swiglu_forward(pointer(gate), pointer(up), pointer(out))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        from erniekit.kernels.triton.swiglu import swiglu_backward

        gate, up = ctx.saved_tensor()
        grad_gate, grad_up = paddle.empty_like(gate), paddle.empty_like(up)
        tensors = grad.contiguous(), gate, up, grad_gate, grad_up
        swiglu_backward(*(pointer(tensor) for tensor in tensors))
        for_gate, for_up = ctx.needs_gradient
        return grad_gate if for_gate else None, grad_up if for_up else None
