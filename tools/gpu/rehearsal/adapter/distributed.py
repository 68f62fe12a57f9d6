"""`paddle.distributed` over torch's process groups: the collectives that `erniekit.distributed.transport` calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from .tensor import Tensor


class ReduceOp:
    """Reductions."""

    SUM, MAX = dist.ReduceOp.SUM, dist.ReduceOp.MAX


class Task:
    """A collective in flight. On a GPU, `wait` makes the device's computation wait, not the host."""

    def __init__(self, work: Any, sync_op: bool) -> None:
        self._work = work
        if sync_op:
            work.wait()

    def wait(self) -> None:
        self._work.wait()

    def is_completed(self) -> bool:
        return bool(self._work.is_completed())


def all_reduce(tensor: Tensor, op: Any = ReduceOp.SUM, group: Any = None, sync_op: bool = True) -> Task:
    return Task(dist.all_reduce(tensor.raw, op, group=group, async_op=True), sync_op)


def broadcast(tensor: Tensor, src: int, group: Any = None, sync_op: bool = True) -> Task:
    return Task(dist.broadcast(tensor.raw, src, group=group, async_op=True), sync_op)


def barrier(group: Any = None) -> None:
    dist.barrier(group)


def all_gather(tensor_or_list: Tensor, tensor: Tensor, group: Any = None, sync_op: bool = True) -> Task:
    """`paddle.distributed.stream.all_gather` into one tensor."""
    work = dist.all_gather_into_tensor(tensor_or_list.raw, tensor.raw.detach(), group=group, async_op=True)
    return Task(work, sync_op)


def reduce_scatter(tensor: Tensor, tensor_or_list: Tensor, group: Any = None, sync_op: bool = True) -> Task:
    """`paddle.distributed.stream.reduce_scatter` of one tensor."""
    work = dist.reduce_scatter_tensor(tensor.raw, tensor_or_list.raw.detach(), group=group, async_op=True)
    return Task(work, sync_op)


def alltoall_single(
    out_tensor: Tensor,
    in_tensor: Tensor,
    out_split_sizes: Sequence[int],
    in_split_sizes: Sequence[int],
    group: Any = None,
    sync_op: bool = True,
) -> Task:
    """`paddle.distributed.stream.alltoall_single` of rows."""
    work = dist.all_to_all_single(
        out_tensor.raw,
        in_tensor.raw.detach(),
        list(out_split_sizes),
        list(in_split_sizes),
        group=group,
        async_op=True,
    )
    return Task(work, sync_op)


OFFERED = (all_reduce, broadcast, barrier)
STREAM = (all_gather, reduce_scatter, alltoall_single)
"""Those under `paddle.distributed.stream`."""
