"""Expert parallelism: tokens are dispatched to the processes that hold their experts, and combined. None is dropped."""

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
    """Dispatch the tokens of a model with experts sharded over a group; no change for a group of one."""
    if group.size == 1:
        return
    for layer in model.model.layers:
        if isinstance(layer.mlp, MoeLayer):
            layer.mlp.dispatcher = ExpertParallelDispatcher(group, layer.mlp.moe)


class ExpertParallelDispatcher:
    """Dispatches tokens to experts that are sharded over a group as in `moe.experts.owned_experts`.

    One uneven all-to-all per layer, for both modalities, sends each (token, expert) pair to the expert's process, and
    the reverse all-to-all returns the outputs. On NCCL the layer's shared experts are computed during the first
    exchange; on gloo, after it. Every process takes part in both exchanges and in their backward passes, even if it
    sends and receives nothing. See `erniekit.moe.dispatch.Dispatcher`.
    """

    def __init__(self, group: ProcessGroup, moe: MoeConfig) -> None:
        if (moe.expert_rank, moe.expert_ranks) != (group.rank, group.size):
            raise ValueError("the layer does not hold the experts of this rank of the group")
        self._group = group
        self._owned = moe.total_experts // group.size
        owned = moe.num_experts // group.size
        experts = np.arange(moe.total_experts)
        modality, index = experts // moe.num_experts, experts % moe.num_experts
        # The position of each expert when experts are sorted by process.
        positions = index // owned * self._owned + modality * owned + index % owned
        self._positions = paddle.to_tensor(positions.astype(np.int64))

    def __call__(
        self,
        x: Tensor,
        routing: Routing,
        num_experts: int,
        compute: ExpertCompute,
        overlap_fn: OverlapFn | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Dispatcher`. The counts are of this process's tokens."""
        flat = routing.experts.reshape([-1])
        positions = paddle.index_select(self._positions, flat)
        order = paddle.argsort(positions, stable=True)
        send_counts = paddle.bincount(positions, minlength=num_experts).numpy()
        send_counts = send_counts.reshape(self._group.size, self._owned)
        recv_counts = exchange_counts(send_counts, self._group)
        send, recv = send_counts.sum(1).tolist(), recv_counts.sum(1).tolist()
        rows = paddle.index_select(x, order // routing.experts.shape[1])
        wait = start_all_to_all_rows(rows, send, recv, self._group)
        overlapped = None if overlap_fn is None else overlap_fn()
        outputs = _compute(wait(), recv_counts, compute)
        returned = all_to_all_rows(outputs, recv, send, self._group)
        combined = combine(returned, order, routing.weights)
        counts = paddle.bincount(flat, minlength=num_experts)
        return combined if overlapped is None else combined + overlapped, counts


def _compute(received: Tensor, recv_counts: np.ndarray, compute: ExpertCompute) -> Tensor:
    """Expert outputs of received tokens [n, hidden], sorted by source rank, then by expert.

    recv_counts [sources, experts]: tokens from each source for each expert.
    """
    sources, experts = recv_counts.shape
    if not received.shape[0]:
        # Without any token the autograd graph would end here, and this process would miss the collectives of the
        # backward pass: a row of zeros for the last expert keeps it.
        row = paddle.concat([received, paddle.zeros([1, received.shape[1]], received.dtype)])
        return compute(row, [0] * (experts - 1) + [1])[:0]
    expert = np.repeat(np.tile(np.arange(experts), sources), recv_counts.reshape(-1))
    order = np.argsort(expert, kind="stable").astype(np.int64)
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    outputs = compute(paddle.index_select(received, paddle.to_tensor(order)), recv_counts.sum(0).tolist())
    return paddle.index_select(outputs, paddle.to_tensor(inverse))
