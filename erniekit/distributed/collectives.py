"""The collectives, one function each.

Every rank of a group calls the same functions in the same order, also with tensors that have no rows. A group of
one rank gets its input back. Reductions are sums or maxima: averages are formed by who asks. float32, float64,
bfloat16, int32 and int64 can be sent; float16 cannot, of which gloo makes infinities without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import paddle
from paddle import Tensor

from erniekit.distributed.process_group import ProcessGroup
from erniekit.distributed.transport import Native, Reduction, pad_rows, transport_of
from erniekit.distributed.watchdog import LOST, Call, PeerError, describe, waiting

_DTYPES = (paddle.float32, paddle.float64, paddle.bfloat16, paddle.int32, paddle.int64)
# Words in gloo's errors when another process has gone.
_BROKEN = ("connection", "timeout", "closure", "broken pipe", "reset by peer")


def all_reduce_(tensor: Tensor, group: ProcessGroup, op: Reduction = "sum") -> None:
    """Put the sum (or maximum) over all ranks in the place of `tensor`, which has one shape everywhere."""
    if group.size > 1 and tensor.size:
        with _call("all_reduce", group, tensor) as (transport, call):
            transport.all_reduce_(tensor, op, group, call)


def all_reduce_host(array: np.ndarray, group: ProcessGroup, op: Reduction = "sum") -> np.ndarray:
    """The sum (or maximum) over all ranks of an int64 or float64 array; integers are exact."""
    if array.dtype not in (np.int64, np.float64):
        raise ValueError(f"all_reduce_host takes int64 or float64, not {array.dtype}")
    if group.size == 1 or not array.size:
        return array
    tensor = paddle.to_tensor(array)
    all_reduce_(tensor, group, op)
    reduced: np.ndarray = tensor.numpy()
    return reduced


def broadcast_(tensor: Tensor, src: int, group: ProcessGroup) -> None:
    """Put the tensor of the rank whose place in the group is `src` in the place of `tensor`."""
    if group.size > 1 and tensor.size:
        with _call("broadcast", group, tensor) as (transport, call):
            transport.broadcast_(tensor, src, group, call)


def all_gather(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """[n, ...] of each rank -> [size * n, ...], in the order of ranks."""
    if group.size == 1 or not tensor.size:
        return tensor if group.size == 1 else _no_rows(tensor, group.size * tensor.shape[0])
    with _call("all_gather", group, tensor) as (transport, call):
        return transport.all_gather(tensor.contiguous(), group, call)


def all_gather_uneven(tensor: Tensor, counts: Sequence[int], group: ProcessGroup) -> Tensor:
    """[counts[rank], ...] of each rank -> [sum(counts), ...], in the order of ranks."""
    _check_rows(tensor, counts[group.rank], group, counts)
    longest = max(counts)
    if min(counts) == longest:
        return all_gather(tensor, group)
    padded = all_gather(pad_rows(tensor, longest), group)
    return paddle.concat([padded[i * longest : i * longest + count] for i, count in enumerate(counts)])


def reduce_scatter(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """[size * n, ...] of each rank -> the sum over ranks of this rank's part [n, ...]."""
    if group.size == 1:
        return tensor
    if tensor.shape[0] % group.size:
        raise ValueError(f"{tensor.shape[0]} rows cannot be shared evenly by {group.size} ranks")
    if not tensor.size:
        return _no_rows(tensor, tensor.shape[0] // group.size)
    with _call("reduce_scatter", group, tensor) as (transport, call):
        return transport.reduce_scatter(tensor.contiguous(), group, call)


def all_to_all(tensor: Tensor, send: Sequence[int], recv: Sequence[int], group: ProcessGroup) -> Tensor:
    """Rows [sum(send), ...], of which send[i] go to rank i -> rows [sum(recv), ...], recv[i] from rank i.

    Both are in the order of ranks; recv[i] here is send[own rank] there (`exchange_counts`). All ranks take part,
    also those with nothing to send or to receive.
    """
    _check_rows(tensor, sum(send), group, send)
    if group.size == 1:
        return tensor
    with _call("all_to_all", group, tensor) as (transport, call):
        return transport.all_to_all(tensor.contiguous(), send, recv, group, call)


class AsyncWork:
    """A collective that a `start_...` function has begun; every rank waits for it, too."""

    def __init__(self, sent: Tensor, result: Tensor, group: ProcessGroup, call: Call | None = None) -> None:
        # What is sent must stay where it is until it has been.
        self._sent: Tensor | None = sent
        self._result, self._group, self._call = result, group, call
        self._task = None if call is None else call.task

    def wait(self) -> Tensor:
        """The result. Raises PeerError where another rank has ended; the watchdog tells who is missing."""
        if self._call is not None and self._task is not None:
            with _blaming(self._call, self._group):
                self._task.wait()
        self._sent = None
        return self._result


def start_all_to_all(
    tensor: Tensor, send: Sequence[int], recv: Sequence[int], group: ProcessGroup
) -> AsyncWork:
    """`all_to_all`, of which the result is waited for later.

    On NCCL the device computes what is queued in between at the same time. On gloo the exchange is over when this
    returns; so it is with the other functions that start something.
    """
    _check_rows(tensor, sum(send), group, send)
    if group.size == 1:
        return AsyncWork(tensor, tensor, group)
    with _call("all_to_all", group, tensor) as (transport, call):
        sent = tensor.contiguous()
        result = transport.all_to_all(sent, send, recv, group, call, later=True)
    return AsyncWork(sent, result, group, call)


def start_all_reduce(tensor: Tensor, group: ProcessGroup) -> AsyncWork:
    """`all_reduce_` of a sum; the tensor itself is the result."""
    if group.size == 1 or not tensor.size:
        return AsyncWork(tensor, tensor, group)
    with _call("all_reduce", group, tensor) as (transport, call):
        transport.all_reduce_(tensor, "sum", group, call, later=True)
    return AsyncWork(tensor, tensor, group, call)


def start_all_gather(tensor: Tensor, group: ProcessGroup) -> AsyncWork:
    """`all_gather` of a tensor with at least one element."""
    if group.size == 1:
        return AsyncWork(tensor, tensor, group)
    with _call("all_gather", group, tensor) as (transport, call):
        sent = tensor.contiguous()
        result = transport.all_gather(sent, group, call, later=True)
    return AsyncWork(sent, result, group, call)


def start_reduce_scatter(tensor: Tensor, group: ProcessGroup) -> AsyncWork:
    """`reduce_scatter` of a tensor whose rows the ranks share evenly, at least one each."""
    if group.size == 1:
        return AsyncWork(tensor, tensor, group)
    with _call("reduce_scatter", group, tensor) as (transport, call):
        sent = tensor.contiguous()
        result = transport.reduce_scatter(sent, group, call, later=True)
    return AsyncWork(sent, result, group, call)


def exchange_counts(counts: np.ndarray, group: ProcessGroup) -> np.ndarray:
    """int64 [size, m], of which row i is for rank i -> [size, m], of which row i came from rank i."""
    if group.size == 1:
        return counts
    ones = [1] * group.size
    received: np.ndarray = all_to_all(paddle.to_tensor(counts), ones, ones, group).numpy()
    return received


def barrier(group: ProcessGroup) -> None:
    """Wait until every rank of the group has come here."""
    if group.size > 1:
        with _call("barrier", group) as (transport, call):
            transport.barrier(group, call)


@contextmanager
def _call(name: str, group: ProcessGroup, tensor: Tensor | None = None) -> Iterator[tuple[Native, Call]]:
    """Inside is one collective, watched; on gloo the ranks have met. Raises PeerError where another has ended."""
    if tensor is not None and tensor.dtype not in _DTYPES:
        raise ValueError(f"{name}: tensors of {tensor.dtype} cannot be sent")
    with waiting(name, group) as call:
        if group.rendezvous is not None:
            group.rendezvous.meet(name, call.number)
        with _blaming(call, group):
            yield transport_of(group), call
        if group.rendezvous is not None:
            call.task = None


@contextmanager
def _blaming(call: Call, group: ProcessGroup) -> Iterator[None]:
    """A connection that breaks inside means that another rank has ended."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not any(word in str(error).lower() for word in _BROKEN):
            raise
        first = str(error).strip().splitlines()[0]
        where = describe(call.name, call.number, group.ranks)
        raise PeerError(f"{LOST}: another rank ended during {where} ({first})") from error


def _no_rows(tensor: Tensor, rows: int) -> Tensor:
    return paddle.empty([rows, *tensor.shape[1:]], dtype=tensor.dtype)


def _check_rows(tensor: Tensor, rows: int, group: ProcessGroup, counts: Sequence[int]) -> None:
    if len(counts) != group.size:
        raise ValueError(f"{len(counts)} counts for a group of {group.size} ranks")
    if tensor.shape[0] != rows:
        raise ValueError(f"{tensor.shape[0]} rows where the counts say {rows}")
