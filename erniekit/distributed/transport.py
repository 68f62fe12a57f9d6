"""How the ranks of a group move tensors: Paddle's own collectives, and beside them what gloo needs in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor

from erniekit.distributed.gloo import exchange
from erniekit.distributed.process_group import ProcessGroup
from erniekit.distributed.watchdog import Call

Reduction = Literal["sum", "max"]
_REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class Native:
    """Paddle's collectives, complete on NCCL, where they are queued in the order of the device's computation.

    Groups have several ranks. Tensors are contiguous and, but for all_to_all's, not empty. The task that was
    queued becomes that of `call`. later: the computation that is queued next does not wait for it; the result is
    there once the task has been waited for.
    """

    def all_reduce_(
        self, tensor: Tensor, op: Reduction, group: ProcessGroup, call: Call, *, later: bool = False
    ) -> None:
        """In place."""
        call.task = dist.all_reduce(tensor, op=_REDUCTIONS[op], group=group.handle, sync_op=not later)

    def broadcast_(self, tensor: Tensor, src: int, group: ProcessGroup, call: Call) -> None:
        """In place; src: place in the group."""
        call.task = dist.broadcast(tensor, src=group.ranks[src], group=group.handle)

    def all_gather(self, tensor: Tensor, group: ProcessGroup, call: Call, *, later: bool = False) -> Tensor:
        """[n, ...] -> [size * n, ...]."""
        out = paddle.empty([group.size * tensor.shape[0], *tensor.shape[1:]], dtype=tensor.dtype)
        call.task = dist.stream.all_gather(out, tensor, group=group.handle, sync_op=not later)
        return out

    def reduce_scatter(
        self, tensor: Tensor, group: ProcessGroup, call: Call, *, later: bool = False
    ) -> Tensor:
        """[size * n, ...] -> [n, ...]."""
        out = paddle.empty([tensor.shape[0] // group.size, *tensor.shape[1:]], dtype=tensor.dtype)
        call.task = dist.stream.reduce_scatter(out, tensor, group=group.handle, sync_op=not later)
        return out

    def all_to_all(
        self,
        tensor: Tensor,
        send: Sequence[int],
        recv: Sequence[int],
        group: ProcessGroup,
        call: Call,
        *,
        later: bool = False,
    ) -> Tensor:
        """[sum(send), ...] -> [sum(recv), ...]."""
        out = paddle.empty([sum(recv), *tensor.shape[1:]], dtype=tensor.dtype)
        call.task = dist.stream.alltoall_single(
            out, tensor, list(recv), list(send), group=group.handle, sync_op=not later
        )
        return out

    def barrier(self, group: ProcessGroup, call: Call) -> None:
        """Wait for all."""
        dist.barrier(group.handle)


class Gloo(Native):
    """On CPUs. The ranks have met before each call, and it is over when it returns, also one for later."""

    def reduce_scatter(
        self, tensor: Tensor, group: ProcessGroup, call: Call, *, later: bool = False
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
        call: Call,
        *,
        later: bool = False,
    ) -> Tensor:
        """In pairs. Of an odd number of ranks one would have no partner: there, all-gather and choose."""
        parts = split_rows(tensor, send)
        move = _gather_and_choose if group.size % 2 else exchange
        return paddle.concat(move(parts, [[count, *tensor.shape[1:]] for count in recv], group.handle))

    def barrier(self, group: ProcessGroup, call: Call) -> None:
        """That the ranks have met is a barrier."""


_NATIVE, _GLOO = Native(), Gloo()


def transport_of(group: ProcessGroup) -> Native:
    """How the ranks of a group of several move tensors."""
    return _NATIVE if group.rendezvous is None else _GLOO


def split_rows(tensor: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Consecutive parts of so many rows each; contiguous."""
    ends = np.cumsum(counts).tolist()
    return [tensor[end - count : end].contiguous() for end, count in zip(ends, counts, strict=True)]


def pad_rows(tensor: Tensor, rows: int) -> Tensor:
    """With rows of zeros at the end, up to `rows`."""
    lacking = rows - tensor.shape[0]
    if not lacking:
        return tensor
    return paddle.concat([tensor, paddle.zeros([lacking, *tensor.shape[1:]], dtype=tensor.dtype)])


def _gather_and_choose(
    parts: Sequence[Tensor], shapes: Sequence[Sequence[int]], handle: dist.Group
) -> list[Tensor]:
    """What `exchange` does, by sending every part to everyone, padded to the longest part of all ranks."""
    longest_part = paddle.to_tensor([max(part.shape[0] for part in parts)], dtype="int64")
    dist.all_reduce(longest_part, op=dist.ReduceOp.MAX, group=handle)
    longest = int(longest_part.item())
    own = paddle.stack([pad_rows(part, longest) for part in parts])
    if not own.size:
        return list(parts)
    everything = paddle.empty([len(parts) * len(parts), *own.shape[1:]], dtype=own.dtype)
    dist.stream.all_gather(everything, own, group=handle)
    return [everything[i * len(parts) + handle.rank][: shape[0]] for i, shape in enumerate(shapes)]
