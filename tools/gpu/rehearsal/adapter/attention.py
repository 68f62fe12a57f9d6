"""Attention over packed rows: what Paddle's fused kernels compute, by torch's.

On a GPU documents go through torch's FlashAttention 2 or cuDNN's attention (`use_documents`), and other masks through
compiled `flex_attention`. On a CPU, where Paddle has no such kernels, both are composed, for tests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .tensor import Tensor


class _Chosen:
    cudnn = False


def use_documents(kernel: str) -> None:
    """flash: FlashAttention 2; cudnn: cuDNN's attention, for rows of flashmask only."""
    if kernel not in ("flash", "cudnn"):
        raise ValueError(f"no attention {kernel}")
    _Chosen.cudnn = kernel == "cudnn"


def flash_attn_unpadded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    dropout: float = 0.0,
    causal: bool = False,
) -> tuple[Tensor, None]:
    """[T, heads, d]; the documents of queries and of keys are the same."""
    if dropout or cu_seqlens_q is not cu_seqlens_k or max_seqlen_q != max_seqlen_k:
        raise AttributeError("the adapter has flash_attn_unpadded for self-attention without dropout")
    bounds = cu_seqlens_q.raw
    if bounds.dtype != torch.int32:
        raise TypeError(f"cu_seqlens are {bounds.dtype}")
    raws = query.raw, key.raw, value.raw
    return Tensor(_documents(*raws, bounds, max_seqlen_q, scale=scale, causal=causal)), None


def flashmask_attention(
    query: Tensor, key: Tensor, value: Tensor, startend_row_indices: Tensor, *, causal: bool = False
) -> Tensor:
    """[1, T, heads, d], with int32 [1, 1, T, 1] if causal, else [1, 1, T, 2]."""
    bounds = startend_row_indices.raw
    columns = 1 if causal else 2
    if bounds.dtype != torch.int32 or tuple(bounds.shape) != (1, 1, key.raw.shape[1], columns):
        raise AttributeError(
            f"the adapter has no flashmask_attention with {bounds.dtype} {list(bounds.shape)}, causal={causal}"
        )
    scale = query.raw.shape[-1] ** -0.5
    plan = _plan_of(bounds, causal)
    if plan.cu_seqlens is not None:
        rows = (x.raw.squeeze(0) for x in (query, key, value))
        if query.raw.is_cuda and _Chosen.cudnn:
            return Tensor(_cudnn(*rows, plan.edges, scale=scale, causal=causal).unsqueeze(0))
        output = _documents(*rows, plan.cu_seqlens, plan.longest, scale=scale, causal=causal)
        return Tensor(output.unsqueeze(0))
    heads_first = (x.raw.transpose(1, 2) for x in (query, key, value))
    return Tensor(plan.masked(*heads_first, scale).transpose(1, 2))


def _documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    *,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    if query.is_cuda:
        if _Chosen.cudnn:
            raise AttributeError("the adapter has cuDNN's attention for flashmask_attention only")
        flash = torch.ops.aten._flash_attention_forward
        return flash(query, key, value, bounds, bounds, longest, longest, 0.0, causal, False, scale=scale)[0]
    return _each(query, key, value, bounds.tolist(), scale=scale, causal=causal)


def _cudnn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edges: Sequence[int],
    *,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    """In one call if all documents have one length."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        lengths = np.diff(edges)
        if (lengths != lengths[0]).any():
            return _each(query, key, value, edges, scale=scale, causal=causal)
        rows = (x.unflatten(0, (len(lengths), -1)) for x in (query, key, value))
        return _attend(*rows, scale=scale, causal=causal).flatten(0, 1)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, causal: bool
) -> torch.Tensor:
    """[documents, length, heads, d]."""
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    found = F.scaled_dot_product_attention(*heads_first, is_causal=causal, scale=scale, enable_gqa=True)
    return found.transpose(1, 2)


def _each(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edges: Sequence[int],
    *,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    """One document after another."""
    outputs = [
        _attend(*(x[None, start:stop] for x in (query, key, value)), scale=scale, causal=causal)
        for start, stop in pairwise(edges)
    ]
    return torch.cat([output.squeeze(0) for output in outputs])


class _Plan(NamedTuple):
    """How a mask is computed: by `cu_seqlens` and `edges`, the same on the host, if it is one of documents, else by
    `masked`, heads first."""

    bounds: torch.Tensor
    cu_seqlens: torch.Tensor | None = None
    longest: int = 0
    edges: tuple[int, ...] = ()
    masked: Callable[..., torch.Tensor] | None = None


# The plans of the last row: of the decoder's layers, and of the vision tower's.
_last: deque[_Plan] = deque(maxlen=2)


def _plan_of(bounds: torch.Tensor, causal: bool) -> _Plan:
    for plan in _last:
        if plan.bounds is bounds:
            return plan
    _last.append(_plan(bounds, causal))
    return _last[-1]


def _plan(bounds: torch.Tensor, causal: bool) -> _Plan:
    """Once per row, on the host, which waits for the device; Paddle's kernel needs no such plan."""
    columns = bounds[0, 0].cpu().numpy()
    ends = columns[:, 0]
    tokens = len(ends)
    positions = np.arange(tokens)
    if (ends <= positions).any() or (not causal and (columns[:, 1] > positions).any()):
        raise ValueError("a mask under which a token does not see itself")
    edges = np.concatenate([[0], np.flatnonzero(np.diff(ends)) + 1, [tokens]]).astype(np.int32)
    whole = np.array_equal(ends, np.repeat(edges[1:], np.diff(edges)))
    if not causal:
        whole = whole and np.array_equal(columns[:, 1], np.repeat(edges[:-1], np.diff(edges)))
    if whole:
        longest = int(np.diff(edges).max())
        return _Plan(bounds, torch.from_numpy(edges).to(bounds.device), longest, tuple(edges.tolist()))
    return _Plan(bounds, masked=_masked(bounds, causal))


def _masked(bounds: torch.Tensor, causal: bool) -> Callable[..., torch.Tensor]:
    end = bounds[0, 0, :, 0]

    def sees(batch: Any, head: Any, row: Any, column: Any) -> Any:
        if causal:
            return (row >= column) & (row < end[column])
        return (row < end[column]) & (row >= bounds[0, 0, :, 1][column])

    tokens = len(end)
    if bounds.is_cuda:
        from torch.nn.attention.flex_attention import create_block_mask

        mask = create_block_mask(sees, None, None, tokens, tokens, device=bounds.device)
        return lambda q, k, v, scale: _flex()(q, k, v, block_mask=mask, scale=scale, enable_gqa=True)
    places = torch.arange(tokens)
    dense = sees(None, None, places[:, None], places[None, :])
    return lambda q, k, v, scale: F.scaled_dot_product_attention(
        q, k, v, attn_mask=dense, scale=scale, enable_gqa=True
    )


@cache
def _flex() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
