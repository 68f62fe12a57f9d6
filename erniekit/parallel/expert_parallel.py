"""Expert parallelism: tokens travel to the processes that hold their experts, and back. Nothing is dropped."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor

from erniekit.distributed.collectives import exchange_counts
from erniekit.distributed.differentiable import all_to_all_rows, start_all_to_all_rows
from erniekit.distributed.process_group import ProcessGroup
from erniekit.models.ernie import ErnieModel
from erniekit.moe.config import MoeConfig
from erniekit.moe.dispatch import ExpertCompute, OverlapFn, combine
from erniekit.moe.layer import MoeLayer
from erniekit.moe.router import Routing


def apply_expert_parallel(model: ErnieModel, group: ProcessGroup) -> None:
    """Let the tokens of a model whose experts are spread over a group find them. Nothing for a group of one."""
    if group.size == 1:
        return
    for layer in model.model.layers:
        if isinstance(layer.mlp, MoeLayer):
            layer.mlp.dispatcher = ExpertParallelDispatcher(group, layer.mlp.moe)


class ExpertParallelDispatcher:
    """The experts of a layer, spread over a group as `moe.experts.owned_experts` says.

    Each (token, expert) pair is sent to the expert's process, one uneven all-to-all a layer for both modalities,
    and its output comes back by the reverse one. The layer's shared experts are computed while the pairs are on
    their way, where the backend lets both run (NCCL; on gloo one comes after the other). Every process takes part
    in both exchanges, and in their backward passes, even if it sends and receives nothing. See
    `erniekit.moe.dispatch.Dispatcher`.
    """

    def __init__(self, group: ProcessGroup, moe: MoeConfig) -> None:
        if (moe.expert_rank, moe.expert_ranks) != (group.rank, group.size):
            raise ValueError("the layer's experts are not this process's share of the group's")
        self._group = group
        self._owned = moe.total_experts // group.size
        share = moe.num_experts // group.size
        numbers = np.arange(moe.total_experts)
        modality, number = numbers // moe.num_experts, numbers % moe.num_experts
        # Where each expert stands when they are sorted by their process.
        places = number // share * self._owned + modality * share + number % share
        self._place_of = paddle.to_tensor(places.astype(np.int64))

    def __call__(
        self,
        x: Tensor,
        routing: Routing,
        num_experts: int,
        compute: ExpertCompute,
        overlap_fn: OverlapFn | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Dispatcher`. The counts are those of this process's tokens."""
        flat = routing.experts.reshape([-1])
        places = paddle.index_select(self._place_of, flat)
        order = paddle.argsort(places, stable=True)
        leaving = paddle.bincount(places, minlength=num_experts).numpy()
        leaving = leaving.reshape(self._group.size, self._owned)
        arriving = exchange_counts(leaving, self._group)
        send, receive = leaving.sum(1).tolist(), arriving.sum(1).tolist()
        rows = paddle.index_select(x, order // routing.experts.shape[1])
        arrive = start_all_to_all_rows(rows, send, receive, self._group)
        beside = None if overlap_fn is None else overlap_fn()
        outputs = _compute(arrive(), arriving, compute)
        returned = all_to_all_rows(outputs, receive, send, self._group)
        combined = combine(returned, order, routing.weights)
        counts = paddle.bincount(flat, minlength=num_experts)
        return combined if beside is None else combined + beside, counts


def _compute(received: Tensor, arriving: np.ndarray, compute: ExpertCompute) -> Tensor:
    """Outputs of received tokens [n, hidden], which stand by source and then by expert, `arriving` [sources,
    experts] of each."""
    sources, experts = arriving.shape
    if not received.shape[0]:
        # Without any token the graph would end here, and this process would miss the collectives of the backward
        # pass: a row of zeros for the last expert stands in.
        row = paddle.concat([received, paddle.zeros([1, received.shape[1]], received.dtype)])
        return compute(row, [0] * (experts - 1) + [1])[:0]
    expert = np.repeat(np.tile(np.arange(experts), sources), arriving.reshape(-1))
    order = np.argsort(expert, kind="stable").astype(np.int64)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    outputs = compute(paddle.index_select(received, paddle.to_tensor(order)), arriving.sum(0).tolist())
    return paddle.index_select(outputs, paddle.to_tensor(back))
