"""Cross entropy of the output layer, over chunks of tokens: logits exist for one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, _C_ops

from erniekit.kernels.choice import form_of
from erniekit.kernels.tensors import numpy_view
from erniekit.kernels.triton.runtime import pointer

# Below this probability of a label, the CPU form computes the loss from the logits: Paddle's softmax on CPU clips
# logits at 64 below the largest.
_SMALLEST = 1e-20


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int, scale: float = 1.0
) -> Tensor:
    """Sum of negative log-likelihoods, float32 scalar, without ever holding [N, vocab] logits.

    `hidden` [N, H] holds loss tokens only, `weight` [V, H] is the output head, `labels` int64 [N]. Logits and their
    gradients exist for `chunk` tokens at a time, softmax and sums are float32. Gradients are computed in the forward
    pass, so nothing is computed twice. `scale`: the gradient that the sum is expected to get in the backward pass, such
    as 1 / tokens; gradients below float32 are then rounded only once, after they are scaled. Without loss tokens the
    sum is 0 and the gradients are zeros, so that the collectives in the layers still run in the backward pass.
    """
    wanted = paddle.is_grad_enabled()
    return _ChunkedCrossEntropy.apply(
        hidden,
        weight,
        labels,
        chunk,
        1.0 if hidden.dtype == paddle.float32 else scale,
        wanted and not hidden.stop_gradient,
        wanted and not weight.stop_gradient,
    )


def chunked_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """Log-probability of each label, float32 [N], without ever holding [N, vocab] logits.

    As `chunked_cross_entropy`, for losses that weight tokens individually: logits are computed again in the backward
    pass, and their gradients scaled before they are rounded. With a frozen head in float32, where scaling afterwards
    loses nothing, gradients of `hidden` are computed in the forward pass instead.
    """
    wanted = paddle.is_grad_enabled()
    return _ChunkedLogProbs.apply(
        hidden,
        weight,
        labels,
        chunk,
        wanted and not hidden.stop_gradient,
        wanted and not weight.stop_gradient,
    )


class _ChunkedCrossEntropy(paddle.autograd.PyLayer):
    """The loss is a sum, so the forward pass knows its gradients up to the incoming scalar gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        chunk: int,
        scale: float,
        for_hidden: bool,
        for_weight: bool,
    ) -> Tensor:
        factors = None if scale == 1.0 else paddle.full([hidden.shape[0]], scale, "float32")
        losses, ctx.grad_hidden, ctx.grad_weight = _chunks(
            hidden, weight, labels, chunk, factors, for_hidden, for_weight
        )
        ctx.dtypes, ctx.scale = (hidden.dtype, weight.dtype), scale
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rest = grad / ctx.scale
        return (
            None if ctx.grad_hidden is None else _scaled(ctx.grad_hidden, rest, ctx.dtypes[0]),
            None if ctx.grad_weight is None else _scaled(ctx.grad_weight, rest, ctx.dtypes[1]),
            None,
        )


class _ChunkedLogProbs(paddle.autograd.PyLayer):
    """The gradient of the logits of a token is onehot - softmax, times the incoming gradient of the token."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        chunk: int,
        for_hidden: bool,
        for_weight: bool,
    ) -> Tensor:
        early = for_hidden and not for_weight and hidden.dtype == paddle.float32
        losses, ctx.grad_hidden, _ = _chunks(hidden, weight, labels, chunk, None, early, False)
        ctx.chunk, ctx.wanted = chunk, (for_hidden, for_weight)
        ctx.save_for_backward(hidden, weight, labels)
        return -losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if ctx.grad_hidden is not None:
            return ctx.grad_hidden * -grad.unsqueeze(-1), None, None
        hidden, weight, labels = ctx.saved_tensor()
        _, grad_hidden, grad_weight = _chunks(hidden, weight, labels, ctx.chunk, -grad, *ctx.wanted)
        return grad_hidden, None if grad_weight is None else grad_weight.astype(weight.dtype), None


def _chunks(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    chunk: int,
    factors: Tensor | None,
    for_hidden: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Losses of tokens, float32 [N], and the gradients of their sum weighted with `factors`, float32 [N] or None.

    The gradients are [N, H] in the dtype of `hidden`, and float32 [V, H]; None if they are not needed.
    """
    losses: list[Tensor] = []
    grad_hidden: list[Tensor] = []
    grad_weight: Tensor | None = None
    for start in range(0, hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        rows, factor = hidden[part], None if factors is None else factors[part]
        loss, error = cross_entropy(rows, weight, labels[part], factor, gradient=for_hidden or for_weight)
        losses.append(loss)
        if for_hidden:
            grad_hidden.append(paddle.matmul(error, weight))
        if for_weight:
            grad_weight = _accumulate(grad_weight, paddle.matmul(error, rows, transpose_x=True))
        del error  # before the logits of the next chunk are computed
    if not losses:
        return (
            paddle.zeros([0], "float32"),
            paddle.zeros_like(hidden) if for_hidden else None,
            paddle.zeros(weight.shape, "float32") if for_weight else None,
        )
    return paddle.concat(losses), paddle.concat(grad_hidden) if for_hidden else None, grad_weight


def _accumulate(total: Tensor | None, part: Tensor) -> Tensor:
    """total + part in float32."""
    if total is None:
        return part.astype("float32")
    if form_of("cross_entropy") == "triton":
        from erniekit.kernels.triton import cross_entropy as kernels

        kernels.accumulate(pointer(total), pointer(part))
        return total
    return total.add_(part.astype("float32"))


def _scaled(gradient: Tensor, factor: Tensor, dtype: paddle.dtype) -> Tensor:
    return (gradient.astype("float32") * factor).astype(dtype)


def cross_entropy(
    rows: Tensor, weight: Tensor, labels: Tensor, scale: Tensor | None = None, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Negative log-likelihoods of one chunk, float32 [n], and with `gradient` the gradient of its logits, [n, vocab].

    rows [n, H], weight [vocab, H], labels int64 [n]. The gradient is that of the sum of the losses weighted with
    `scale`, float32 [n], in the dtype of the rows, rounded once. The loss is exact where the probability of the label
    underflows, and NaN where a logit is.
    """
    logits = paddle.matmul(rows, weight, transpose_y=True)
    form = form_of("cross_entropy")
    if form == "triton":
        from erniekit.kernels.triton import cross_entropy as kernels

        losses = paddle.empty([len(labels)], "float32")
        factors = None if scale is None else pointer(scale)
        kernels.cross_entropy(pointer(logits), pointer(labels), pointer(losses), factors, gradient=gradient)
        return losses, logits if gradient else None
    if form == "cpu":
        losses, error = _cpu_loss(
            logits, labels, lambda few: paddle.matmul(rows[few], weight, transpose_y=True)
        )
    else:
        losses, error = _plain_loss(logits, labels)
    if not gradient:
        return losses, None
    if scale is not None:
        error.multiply_(scale.unsqueeze(-1))
    return losses, error.astype(rows.dtype)


def _plain_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and softmax - onehot, float32; overwrites float32 logits."""
    targets = labels.unsqueeze(-1)
    error = logits.astype("float32")
    error.subtract_(error.max(axis=-1, keepdim=True))
    at_target = paddle.take_along_axis(error, targets, 1)
    total = error.exp_().sum(axis=-1, keepdim=True)
    minus_one = paddle.full(targets.shape, -1.0, "float32")
    error.divide_(total).put_along_axis_(targets, minus_one, 1, reduce="add")
    return (paddle.log(total) - at_target).squeeze(-1), error


def _cpu_loss(logits: Tensor, labels: Tensor, again: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """`_plain_loss` with Paddle's softmax and numpy views. again: returns the logits of some rows.

    Views read and change one entry of each row at no cost, while Paddle's argmax, index_sample and put_along_axis take
    200 ms for 1,024 rows of 103,424 entries.
    """
    values, places = numpy_view(logits), (np.arange(len(labels)), labels.numpy())
    at_target = values[places]
    error = _C_ops.softmax_(logits, -1)
    probabilities = values[places]
    losses = -np.log(probabilities)
    # Paddle's softmax of NaN or infinity is uniform, or anything else.
    exact = np.flatnonzero(~(probabilities >= _SMALLEST) | ~np.isfinite(at_target))
    if len(exact):
        few = again(paddle.to_tensor(exact)).numpy()
        peak = few.max(1)
        with np.errstate(invalid="ignore"):
            losses[exact] = np.log(np.exp(few - peak[:, None]).sum(1)) + (peak - at_target[exact])
    values[places] -= 1
    return paddle.to_tensor(losses), error
