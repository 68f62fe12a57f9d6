"""Expert parallelism: tokens are dispatched to the processes that hold their experts, and combined. None is dropped."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor

from erniekit.distributed.collectives import exchange_counts
from erniekit.distributed.differentiable import all_to_all_rows, start_all_to_all_rows
from erniekit.distributed.process_group import ProcessGroup
from erniekit.kernels.grouped_gemm import ExpertRows
from erniekit.kernels.permute import permute, sort_by_expert, unpermute
from erniekit.models.ernie import ErnieModel
from erniekit.moe.config import MoeConfig
from erniekit.moe.dispatch import ExpertCompute, OverlapFn
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
        positions = self._positions[routing.experts]
        order, slots, offsets = sort_by_expert(positions, num_experts)
        sorted_counts = offsets[1:] - offsets[:-1]
        # The only values of a layer that the host waits for: it must know how much to send and to receive.
        by_rank = sorted_counts.astype("int64").reshape([self._group.size, self._owned])
        send_counts, recv_counts = exchange_counts(by_rank, self._group)
        send, recv = send_counts.sum(1).tolist(), recv_counts.sum(1).tolist()
        wait = start_all_to_all_rows(permute(x, order, slots), send, recv, self._group)
        overlapped = None if overlap_fn is None else overlap_fn()
        outputs = _compute(wait(), recv_counts, len(routing.tokens), compute)
        returned = all_to_all_rows(outputs, recv, send, self._group)
        combined = unpermute(returned, order, slots, routing.weights)
        counts = sorted_counts[self._positions].astype("int64")
        return combined if overlapped is None else combined + overlapped, counts


def _compute(received: Tensor, recv_counts: np.ndarray, modalities: int, compute: ExpertCompute) -> Tensor:
    """Expert outputs of received tokens [n, hidden], sorted by source rank, then by expert.

    recv_counts [sources, experts]: tokens from each source for each expert.
    """
    counts = recv_counts.sum(0)
    if not received.shape[0]:
        # Without any token the autograd graph would end here, and this process would miss the collectives of the
        # backward pass: a row of zeros for the last expert keeps it.
        received = paddle.concat([received, paddle.zeros([1, received.shape[1]], received.dtype)])
        counts[-1] = 1
        return compute(received, _rows(counts, modalities))[:0]
    order, slots = _sort_received(recv_counts)
    outputs = compute(permute(received, order, slots), _rows(counts, modalities))
    # Back to the order of arrival: the inverse permutation.
    return permute(outputs, slots.reshape([-1]), order.unsqueeze(1))


def _rows(counts: np.ndarray, modalities: int) -> list[ExpertRows | None]:
    """The rows of each modality, from the tokens of each expert of this process."""
    return [ExpertRows.of(own.tolist()) if own.any() else None for own in counts.reshape(modalities, -1)]


def _sort_received(recv_counts: np.ndarray) -> tuple[Tensor, Tensor]:
    """The order that sorts received rows by expert, int32 [n], and the new position of each row, int32 [n, 1].

    The host uploads one number for each source and expert; the device computes the numbers of the rows.
    """
    by_expert = recv_counts.T.reshape(-1)
    starts = np.cumsum(by_expert) - by_expert
    # The first place, sorted by expert, of the rows of each source and expert; minus their first place on arrival.
    target = starts.reshape(recv_counts.shape[::-1]).T.reshape(-1)
    counts = recv_counts.reshape(-1)
    ends = np.cumsum(counts)
    places = paddle.arange(int(ends[-1]), dtype="int64")
    block = paddle.searchsorted(paddle.to_tensor(ends), places, right=True)
    slots = places + paddle.to_tensor(target - (ends - counts))[block]
    order = paddle.scatter(paddle.empty_like(places), slots, places)
    return order.astype("int32"), slots.astype("int32").unsqueeze(1)
