"""Backends of the collectives: Paddle's collectives on NCCL, and replacements for those that gloo lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor

from erniekit.distributed.gloo import pairwise_all_to_all
from erniekit.distributed.process_group import ProcessGroup
from erniekit.distributed.watchdog import Collective

Reduction = Literal["sum", "max"]
_REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class PaddleCollectives:
    """Paddle's collectives for NCCL, which queues them in the order of the device's computation.

    Groups have several ranks. Tensors are contiguous and, except for all_to_all, not empty. The queued task is set as
    the task of `call`. async_op: computation that is queued next does not wait for it; the result is valid after the
    task's `wait`.
    """

    def all_reduce_(
        self, tensor: Tensor, op: Reduction, group: ProcessGroup, call: Collective, *, async_op: bool = False
    ) -> None:
        """In place."""
        call.task = dist.all_reduce(tensor, op=_REDUCTIONS[op], group=group.handle, sync_op=not async_op)

    def broadcast_(self, tensor: Tensor, src: int, group: ProcessGroup, call: Collective) -> None:
        """In place; src: rank within the group."""
        call.task = dist.broadcast(tensor, src=group.ranks[src], group=group.handle)

    def all_gather(
        self, tensor: Tensor, group: ProcessGroup, call: Collective, *, async_op: bool = False
    ) -> Tensor:
        """[n, ...] -> [size * n, ...]."""
        out = paddle.empty([group.size * tensor.shape[0], *tensor.shape[1:]], dtype=tensor.dtype)
        call.task = dist.stream.all_gather(out, tensor, group=group.handle, sync_op=not async_op)
        return out

    def reduce_scatter(
        self, tensor: Tensor, group: ProcessGroup, call: Collective, *, async_op: bool = False
    ) -> Tensor:
        """[size * n, ...] -> [n, ...]."""
        out = paddle.empty([tensor.shape[0] // group.size, *tensor.shape[1:]], dtype=tensor.dtype)
        call.task = dist.stream.reduce_scatter(out, tensor, group=group.handle, sync_op=not async_op)
        return out

    def all_to_all(
        self,
        tensor: Tensor,
        send: Sequence[int],
        recv: Sequence[int],
        group: ProcessGroup,
        call: Collective,
        *,
        async_op: bool = False,
    ) -> Tensor:
        """[sum(send), ...] -> [sum(recv), ...]."""
        out = paddle.empty([sum(recv), *tensor.shape[1:]], dtype=tensor.dtype)
        call.task = dist.stream.alltoall_single(
            out, tensor, list(recv), list(send), group=group.handle, sync_op=not async_op
        )
        return out

    def barrier(self, group: ProcessGroup, call: Collective) -> None:
        """Wait for all ranks."""
        dist.barrier(group.handle)


class GlooCollectives(PaddleCollectives):
    """On the CPU. All ranks have entered a call before it starts. It is complete when it returns, even if async."""

    def reduce_scatter(
        self, tensor: Tensor, group: ProcessGroup, call: Collective, *, async_op: bool = False
    ) -> Tensor:
        """All-to-all, then the sum in the order of ranks; bfloat16 is summed in float32."""
        rows = [tensor.shape[0] // group.size] * group.size
        parts = self.all_to_all(tensor, rows, rows, group, call)
        parts = parts.reshape([group.size, rows[0], *tensor.shape[1:]])
        if tensor.dtype == paddle.bfloat16:
            return parts.astype("float32").sum(0).astype(tensor.dtype)
        return parts.sum(0)

    def all_to_all(
        self,
        tensor: Tensor,
        send: Sequence[int],
        recv: Sequence[int],
        group: ProcessGroup,
        call: Collective,
        *,
        async_op: bool = False,
    ) -> Tensor:
        """In pairs of ranks. With an odd number of ranks, one has no partner: all-gather and select instead."""
        parts = split_rows(tensor, send)
        exchange = _all_gather_and_select if group.size % 2 else pairwise_all_to_all
        return paddle.concat(exchange(parts, [[count, *tensor.shape[1:]] for count in recv], group.handle))

    def barrier(self, group: ProcessGroup, call: Collective) -> None:
        """Does nothing: all ranks have entered the call."""


_PADDLE, _GLOO = PaddleCollectives(), GlooCollectives()


def transport_of(group: ProcessGroup) -> PaddleCollectives:
    """The backend of a group of several ranks."""
    return _PADDLE if group.rendezvous is None else _GLOO


def split_rows(tensor: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Consecutive contiguous parts of counts[i] rows."""
    ends = np.cumsum(counts).tolist()
    return [tensor[end - count : end].contiguous() for end, count in zip(ends, counts, strict=True)]


def pad_rows(tensor: Tensor, rows: int) -> Tensor:
    """Append rows of zeros, up to `rows` in total."""
    missing = rows - tensor.shape[0]
    if not missing:
        return tensor
    return paddle.concat([tensor, paddle.zeros([missing, *tensor.shape[1:]], dtype=tensor.dtype)])


def _all_gather_and_select(
    parts: Sequence[Tensor], shapes: Sequence[Sequence[int]], handle: dist.Group
) -> list[Tensor]:
    """`pairwise_all_to_all` by an all-gather of every part, padded to the longest part of all ranks."""
    longest_part = paddle.to_tensor([max(part.shape[0] for part in parts)], dtype="int64")
    dist.all_reduce(longest_part, op=dist.ReduceOp.MAX, group=handle)
    longest = int(longest_part.item())
    own = paddle.stack([pad_rows(part, longest) for part in parts])
    if not own.size:
        return list(parts)
    gathered = paddle.empty([len(parts) * len(parts), *own.shape[1:]], dtype=own.dtype)
    dist.stream.all_gather(gathered, own, group=handle)
    return [gathered[i * len(parts) + handle.rank][: shape[0]] for i, shape in enumerate(shapes)]
