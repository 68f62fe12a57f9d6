"""Chunked cross entropy of the language model, over loss tokens only."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """Sum of negative log-likelihoods, float32 scalar, without ever holding [N, vocab] logits.

    `hidden` [N, H] holds loss tokens only, `weight` [V, H] is the output head, `labels` int64 [N]. Logits, softmax and
    their gradients exist for `chunk` tokens at a time. Gradients are computed in the forward pass, so nothing is
    computed twice. Softmax and sums are float32. Without loss tokens the sum is 0 and the gradients are zeros, so that
    the collectives in the layers still run in the backward pass.
    """
    wanted = paddle.is_grad_enabled()
    return _ChunkedCrossEntropy.apply(
        hidden,
        weight,
        labels,
        chunk,
        wanted and not hidden.stop_gradient,
        wanted and not weight.stop_gradient,
    )


def chunked_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """Log-probability of each label, float32 [N], without ever holding [N, vocab] logits.

    As `chunked_cross_entropy`, for losses that weight tokens individually. If `weight` is trained, logits are
    recomputed in the backward pass; otherwise gradients of `hidden` are computed in the forward pass.
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


def _negative_log_likelihood(logits: Tensor, softmax: Tensor, targets: Tensor) -> Tensor:
    """Logits and softmax, float32 [n, vocab], and targets, int64 [n, 1] -> [n, 1].

    The log of the normalizer comes from the most probable entry, whose probability is at least 1 / vocab, so the result
    is exact even if the probability of the target underflows. Paddle's cross entropy on CPU clips every token at 64 and
    turns NaN into a finite loss.
    """
    best = logits.argmax(axis=-1, keepdim=True)
    normalizer = paddle.index_sample(logits, best) - paddle.log(paddle.index_sample(softmax, best))
    return normalizer - paddle.index_sample(logits, targets)


def _softmax(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, softmax), float32 [n, vocab] each."""
    logits = paddle.matmul(hidden, weight, transpose_y=True).astype("float32")
    return logits, F.softmax(logits, axis=-1)


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
        found: list[Tensor] = []
        grads: list[Tensor] = []
        for start in range(0, hidden.shape[0], chunk):
            rows, targets = hidden[start : start + chunk], labels[start : start + chunk].unsqueeze(-1)
            logits, softmax = _softmax(rows, weight)
            found.append(-_negative_log_likelihood(logits, softmax, targets).squeeze(-1))
            if for_hidden and not for_weight:
                grads.append(-paddle.matmul(_error(softmax, targets).astype(rows.dtype), weight))
        ctx.grads = paddle.concat(grads) if grads else None
        ctx.wanted = for_hidden, for_weight
        ctx.chunk = chunk
        ctx.save_for_backward(hidden, weight, labels)
        return paddle.concat(found) if found else paddle.zeros([0], "float32")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, labels = ctx.saved_tensor()
        for_hidden, for_weight = ctx.wanted
        factors = grad.unsqueeze(-1)
        if ctx.grads is not None:
            return (ctx.grads.astype("float32") * factors).astype(hidden.dtype), None, None
        grad_hidden: list[Tensor] = []
        grad_weight = paddle.zeros(weight.shape, "float32") if for_weight else None
        for start in range(0, hidden.shape[0], ctx.chunk):
            rows, targets = hidden[start : start + ctx.chunk], labels[start : start + ctx.chunk].unsqueeze(-1)
            _, softmax = _softmax(rows, weight)
            part = (_error(softmax, targets) * -factors[start : start + ctx.chunk]).astype(rows.dtype)
            if for_hidden:
                grad_hidden.append(paddle.matmul(part, weight))
            if grad_weight is not None:
                grad_weight.add_(paddle.matmul(part, rows, transpose_x=True).astype("float32"))
        whole = paddle.concat(grad_hidden) if grad_hidden else paddle.zeros_like(hidden)
        return (
            whole if for_hidden else None,
            None if grad_weight is None else grad_weight.astype(weight.dtype),
            None,
        )


def _error(softmax: Tensor, targets: Tensor) -> Tensor:
    """softmax - onehot, in place."""
    minus_one = paddle.full(targets.shape, -1.0, "float32")
    return softmax.put_along_axis_(targets, minus_one, 1, reduce="add")


class _ChunkedCrossEntropy(paddle.autograd.PyLayer):
    """The loss is a sum, so the forward pass knows its gradients up to the incoming scalar gradient."""

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
        total = paddle.zeros([], "float32")
        grad_hidden: list[Tensor] = []
        grad_weight: Tensor | None = None
        for start in range(0, hidden.shape[0], chunk):
            rows, targets = hidden[start : start + chunk], labels[start : start + chunk].unsqueeze(-1)
            logits, softmax = _softmax(rows, weight)
            total = total + _negative_log_likelihood(logits, softmax, targets).sum()
            if not (for_hidden or for_weight):
                continue
            error = _error(softmax, targets).astype(rows.dtype)
            if for_hidden:
                grad_hidden.append(paddle.matmul(error, weight))
            if for_weight:
                part = paddle.matmul(error, rows, transpose_x=True).astype("float32")
                grad_weight = part if grad_weight is None else grad_weight.add_(part)
        if for_hidden:
            ctx.grad_hidden = paddle.concat(grad_hidden) if grad_hidden else paddle.zeros_like(hidden)
        else:
            ctx.grad_hidden = None
        ctx.grad_weight = grad_weight
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_type, weight_type = ctx.dtypes
        grad_hidden, grad_weight = ctx.grad_hidden, ctx.grad_weight
        return (
            None if grad_hidden is None else (grad_hidden * grad.astype(hidden_type)),
            None if grad_weight is None else (grad_weight * grad).astype(weight_type),
            None,
        )
