"""What the loops written by hand add to transformers' models: attention by document, and the loss by chunks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from tools.bench.peers.workloads import CHUNK_TOKENS

BY_DOCUMENT = "by_document"


def attend_by_document(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each document of a row, [1, heads, T, d] -> [1, T, heads, d], by torch's fused kernel."""
    assert cu_seq_lens_q is not None
    documents = cu_seq_lens_q.diff().tolist()
    outputs = [
        F.scaled_dot_product_attention(*parts, is_causal=True, scale=scaling, enable_gqa=True)
        for parts in zip(*(x.split(documents, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(BY_DOCUMENT, attend_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, lambda *_, **__: None)


def log_probs(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of each label, [N], for a head that is not trained. `hidden` [N, H], `weight` [V, H]."""
    found: torch.Tensor = _LogProbs.apply(hidden, weight, labels)
    return found


def cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the labels. Logits exist for one chunk of tokens at a time."""
    total: torch.Tensor = _CrossEntropy.apply(hidden, weight, labels)
    return total / len(labels)


class _CrossEntropy(torch.autograd.Function):
    """The sum of the losses; its gradients are known in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        compute = _compute_dtype(hidden)
        head = weight.to(compute)
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for part in _chunks(len(labels)):
            rows, targets = hidden[part].to(compute), labels[part, None]
            losses, error = _losses(rows, head, targets)
            total += losses.sum()
            grad_hidden[part] = (error @ head).to(hidden.dtype)
            if grad_weight is not None and compute == torch.float32:
                grad_weight.addmm_(error.t(), rows)
            elif grad_weight is not None:
                grad_weight += error.t() @ rows
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, None if grad_weight is None else grad_weight.mul_(grad), None


class _LogProbs(torch.autograd.Function):
    """Each token's gradient is known in the forward pass, up to its factor."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        compute = _compute_dtype(hidden)
        head = weight.to(compute)
        found = torch.empty(len(labels))
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for part in _chunks(len(labels)):
            losses, error = _losses(hidden[part].to(compute), head, labels[part, None])
            found[part] = -losses
            if grad_hidden is not None:
                grad_hidden[part] = -(error @ head).to(hidden.dtype)
        ctx.save_for_backward(grad_hidden)
        return found

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        return grad_hidden * grad[:, None], None, None


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + CHUNK_TOKENS) for start in range(0, count, CHUNK_TOKENS)]


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype


def _losses(
    rows: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [n], and softmax - onehot in the dtype of the rows."""
    logits = (rows @ head.t()).float()
    normalizer = torch.logsumexp(logits, -1, keepdim=True)
    losses = (normalizer - logits.gather(1, targets)).squeeze(1)
    error = logits.sub_(normalizer).exp_()
    error.scatter_add_(1, targets, torch.full(targets.shape, -1.0))
    return losses, error.to(rows.dtype)
