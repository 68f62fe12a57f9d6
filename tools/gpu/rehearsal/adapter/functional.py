"""Operators of `paddle.nn.functional`, and the kernels of `paddle._C_ops` that are called directly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .tensor import Tensor, unwrap


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return Tensor(x.raw.softmax(axis))


def softmax_(x: Tensor, axis: int = -1) -> Tensor:
    x.raw.copy_(x.raw.softmax(axis))
    return x


def silu(x: Tensor) -> Tensor:
    return Tensor(F.silu(x.raw))


def sigmoid(x: Tensor) -> Tensor:
    return Tensor(x.raw.sigmoid())


def log_sigmoid(x: Tensor) -> Tensor:
    return Tensor(F.logsigmoid(x.raw))


def relu(x: Tensor) -> Tensor:
    return Tensor(x.raw.relu())


def gelu(x: Tensor) -> Tensor:
    return Tensor(F.gelu(x.raw))


def swiglu(x: Tensor, y: Tensor | None = None) -> Tensor:
    gate, up = x.raw.chunk(2, -1) if y is None else (x.raw, y.raw)
    return Tensor(F.silu(gate) * up)


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    return Tensor(F.dropout(x.raw, p, training))


def embedding(x: Tensor, weight: Tensor) -> Tensor:
    return Tensor(F.embedding(x.raw, weight.raw))


def one_hot(x: Tensor, num_classes: int) -> Tensor:
    """float32, where torch's is int64."""
    classes = torch.arange(num_classes, device=x.raw.device)
    return Tensor((x.raw.unsqueeze(-1) == classes).to(torch.float32))


def layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor, bias: Tensor, epsilon: float = 1e-5
) -> Tensor:
    return Tensor(F.layer_norm(x.raw, tuple(normalized_shape), weight.raw, bias.raw, epsilon))


def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor, epsilon: float = 1e-5
) -> tuple[Tensor, Tensor]:
    if tuple(normalized_shape) != (x.raw.shape[-1],):
        raise AttributeError("the adapter has rms_norm over the last axis only")
    inverse = (x.raw.detach().float().square().mean(-1) + epsilon).rsqrt()
    return Tensor(F.rms_norm(x.raw, tuple(normalized_shape), weight.raw, epsilon)), Tensor(inverse)


# Kernels.


def batched_gemm(
    lhs: Tensor, rhs: Tensor, batch_sizes: Sequence[int], trans_lhs: bool = False, trans_rhs: bool = False
) -> Tensor:
    """A loop over products on the host, as Paddle's, without a gradient. trans_lhs: rows of both are summed over."""
    rows = lhs.raw.split(list(batch_sizes))
    if trans_lhs:
        pairs = zip(rows, rhs.raw.split(list(batch_sizes)), strict=True)
        return Tensor(torch.stack([one.t() @ other for one, other in pairs]))
    matrices = rhs.raw.transpose(1, 2) if trans_rhs else rhs.raw
    return Tensor(torch.cat([one @ matrix for one, matrix in zip(rows, matrices, strict=True)]))


def silu_grad(x: Tensor, out: Tensor, out_grad: Tensor) -> Tensor:
    return Tensor(torch.ops.aten.silu_backward(out_grad.raw, x.raw))


def softmax_grad(out: Tensor, out_grad: Tensor, axis: int) -> Tensor:
    return Tensor(torch.ops.aten._softmax_backward_data(out_grad.raw, out.raw, axis, out.raw.dtype))


def squared_l2_norm(x: Tensor) -> Tensor:
    """float32 [1]."""
    return Tensor(torch.linalg.vector_norm(x.raw.float()).square().reshape(1))


@torch.no_grad()
def adamw_(
    param: Tensor,
    grad: Tensor,
    learning_rate: Tensor,
    moment1: Tensor,
    moment2: Tensor,
    moment2_max: Tensor | None,
    beta1_pow: Tensor,
    beta2_pow: Tensor,
    master_param: Tensor | None,
    skip_update: Tensor | None,
    beta1: float,
    beta2: float,
    epsilon: float,
    lr_ratio: float,
    coeff: float,
    with_decay: bool,
    lazy_mode: bool,
    min_row_size_to_use_multithread: int,
    multi_precision: bool,
    use_global_beta_pow: bool,
    amsgrad: bool,
) -> None:
    """`use_global_beta_pow`: the powers stay as they are."""
    for name, value in (("moment2_max", moment2_max), ("master_param", master_param), ("skip", skip_update)):
        if unwrap(value) is not None:
            raise AttributeError(f"the adapter has no adamw_ with {name}")
    if lazy_mode or multi_precision or amsgrad or not use_global_beta_pow:
        raise AttributeError("the adapter has only the plain adamw_, with powers from outside")
    rate = learning_rate.raw.to(param.raw.device) * lr_ratio
    if with_decay:
        param.raw.mul_(1 - rate * coeff)
    moment1.raw.mul_(beta1).add_(grad.raw, alpha=1 - beta1)
    moment2.raw.mul_(beta2).addcmul_(grad.raw, grad.raw, value=1 - beta2)
    correction1, correction2 = 1 - beta1_pow.raw.item(), 1 - beta2_pow.raw.item()
    direction = moment1.raw / (moment2.raw.sqrt().div_(correction2**0.5).add_(epsilon))
    param.raw.sub_(direction.mul_(rate / correction1))


OFFERED = (
    *(softmax, softmax_, silu, sigmoid, log_sigmoid, relu, gelu, swiglu, dropout, embedding, one_hot),
    *(layer_norm, rms_norm),
)
"""The operators under `paddle.nn.functional`, without attention."""

KERNELS = (softmax_, silu_grad, softmax_grad, squared_l2_norm, adamw_)
"""Those under `paddle._C_ops`."""
