"""Collectives, one function each.

Every rank of a group calls the same functions in the same order, also with tensors that have no rows. A group of
one rank gets its input back. Reductions are sums or maxima; callers compute means. The dtypes are float32, float64,
bfloat16, int32 and int64, and for quantized weights, which are only gathered, int8 and uint8. float16 is refused, since
gloo silently turns it into infinities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import paddle
from paddle import Tensor

from erniekit.distributed.process_group import ProcessGroup
from erniekit.distributed.transport import PaddleCollectives, Reduction, pad_rows, transport_of
from erniekit.distributed.watchdog import PEER_LOST, Collective, PeerError, call_text, track_collective

_DTYPES = (
    paddle.float32,
    paddle.float64,
    paddle.bfloat16,
    paddle.int32,
    paddle.int64,
    paddle.int8,
    paddle.uint8,
)
# Words in gloo's errors after another process has ended.
_CONNECTION_ERRORS = ("connection", "timeout", "closure", "broken pipe", "reset by peer")


def all_reduce_(tensor: Tensor, group: ProcessGroup, op: Reduction = "sum") -> None:
    """Replace `tensor`, of the same shape on all ranks, by the sum (or maximum) over all ranks."""
    if group.size > 1 and tensor.size:
        with _collective("all_reduce", group, tensor) as (transport, call):
            transport.all_reduce_(tensor, op, group, call)


def all_reduce_host(array: np.ndarray, group: ProcessGroup, op: Reduction = "sum") -> np.ndarray:
    """The sum (or maximum) of an int64 or float64 array over all ranks; integers are exact."""
    if array.dtype not in (np.int64, np.float64):
        raise ValueError(f"all_reduce_host takes int64 or float64, not {array.dtype}")
    if group.size == 1 or not array.size:
        return array
    tensor = paddle.to_tensor(array)
    all_reduce_(tensor, group, op)
    reduced: np.ndarray = tensor.numpy()
    return reduced


def broadcast_(tensor: Tensor, src: int, group: ProcessGroup) -> None:
    """Replace `tensor` by the tensor of rank `src` within the group."""
    if group.size > 1 and tensor.size:
        with _collective("broadcast", group, tensor) as (transport, call):
            transport.broadcast_(tensor, src, group, call)


def all_gather(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """[n, ...] of each rank -> [size * n, ...], in the order of ranks."""
    if group.size == 1 or not tensor.size:
        return tensor if group.size == 1 else _empty_rows(tensor, group.size * tensor.shape[0])
    with _collective("all_gather", group, tensor) as (transport, call):
        return transport.all_gather(tensor.contiguous(), group, call)


def all_gather_uneven(tensor: Tensor, counts: Sequence[int], group: ProcessGroup) -> Tensor:
    """[counts[rank], ...] of each rank -> [sum(counts), ...], in the order of ranks."""
    _check_rows(tensor, counts[group.rank], group, counts)
    longest = max(counts)
    if min(counts) == longest:
        return all_gather(tensor, group)
    padded = all_gather(pad_rows(tensor, longest), group)
    return paddle.concat([padded[i * longest : i * longest + count] for i, count in enumerate(counts)])


def gather_uneven(tensor: Tensor, counts: Sequence[int], dst: int, group: ProcessGroup) -> Tensor | None:
    """[counts[rank], ...] of each rank -> [sum(counts), ...] on rank `dst` within the group, None on the others."""
    _check_rows(tensor, counts[group.rank], group, counts)
    none = [0] * group.size
    send = [*none[:dst], counts[group.rank], *none[dst + 1 :]]
    gathered = all_to_all(tensor, send, counts if group.rank == dst else none, group)
    return gathered if group.rank == dst else None


def reduce_scatter(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """[size * n, ...] of each rank -> [n, ...], this rank's part of the sum over ranks."""
    if group.size == 1:
        return tensor
    if tensor.shape[0] % group.size:
        raise ValueError(f"{tensor.shape[0]} rows do not divide evenly among {group.size} ranks")
    if not tensor.size:
        return _empty_rows(tensor, tensor.shape[0] // group.size)
    with _collective("reduce_scatter", group, tensor) as (transport, call):
        return transport.reduce_scatter(tensor.contiguous(), group, call)


def all_to_all(tensor: Tensor, send: Sequence[int], recv: Sequence[int], group: ProcessGroup) -> Tensor:
    """Rows [sum(send), ...], send[i] of them for rank i -> rows [sum(recv), ...], recv[i] of them from rank i.

    Rows are in the order of ranks. recv[i] equals send[this rank] of rank i; `exchange_counts` computes it. Ranks with
    nothing to send or receive take part, too.
    """
    _check_rows(tensor, sum(send), group, send)
    if group.size == 1:
        return tensor
    with _collective("all_to_all", group, tensor) as (transport, call):
        return transport.all_to_all(tensor.contiguous(), send, recv, group, call)


class AsyncWork:
    """A collective that a `start_...` function has started; every rank must `wait` for it."""

    def __init__(
        self, sent: Tensor, result: Tensor, group: ProcessGroup, call: Collective | None = None
    ) -> None:
        # The input must not be freed before the collective is complete.
        self._sent: Tensor | None = sent
        self._result, self._group, self._call = result, group, call
        self._task = None if call is None else call.task

    def wait(self) -> Tensor:
        """The result. Raises PeerError if another rank has ended; the watchdog reports ranks that are missing."""
        if self._call is not None and self._task is not None:
            with _peer_errors(self._call, self._group):
                self._task.wait()
        self._sent = None
        return self._result


def start_all_to_all(
    tensor: Tensor, send: Sequence[int], recv: Sequence[int], group: ProcessGroup
) -> AsyncWork:
    """Start an `all_to_all`.

    On NCCL it overlaps with computation that is queued before `wait`. On gloo it is complete when this returns, as are
    the other `start_...` functions.
    """
    _check_rows(tensor, sum(send), group, send)
    if group.size == 1:
        return AsyncWork(tensor, tensor, group)
    with _collective("all_to_all", group, tensor) as (transport, call):
        sent = tensor.contiguous()
        result = transport.all_to_all(sent, send, recv, group, call, async_op=True)
    return AsyncWork(sent, result, group, call)


def start_all_reduce(tensor: Tensor, group: ProcessGroup) -> AsyncWork:
    """Start an `all_reduce_` (sum); the result is the tensor itself."""
    if group.size == 1 or not tensor.size:
        return AsyncWork(tensor, tensor, group)
    with _collective("all_reduce", group, tensor) as (transport, call):
        transport.all_reduce_(tensor, "sum", group, call, async_op=True)
    return AsyncWork(tensor, tensor, group, call)


def start_all_gather(tensor: Tensor, group: ProcessGroup) -> AsyncWork:
    """Start an `all_gather` of a tensor with at least one element."""
    if group.size == 1:
        return AsyncWork(tensor, tensor, group)
    with _collective("all_gather", group, tensor) as (transport, call):
        sent = tensor.contiguous()
        result = transport.all_gather(sent, group, call, async_op=True)
    return AsyncWork(sent, result, group, call)


def start_reduce_scatter(tensor: Tensor, group: ProcessGroup) -> AsyncWork:
    """Start a `reduce_scatter` of a tensor with at least one row per rank, the same number for each."""
    if group.size == 1:
        return AsyncWork(tensor, tensor, group)
    with _collective("reduce_scatter", group, tensor) as (transport, call):
        sent = tensor.contiguous()
        result = transport.reduce_scatter(sent, group, call, async_op=True)
    return AsyncWork(sent, result, group, call)


def exchange_counts(counts: Tensor, group: ProcessGroup) -> tuple[np.ndarray, np.ndarray]:
    """int64 [size, m] with row i for rank i -> the same on the host, and [size, m] with row i from rank i.

    The host waits for the device once, for both.
    """
    ones = [1] * group.size
    sent, received = paddle.stack([counts, all_to_all(counts, ones, ones, group)]).numpy()
    return sent, received


def barrier(group: ProcessGroup) -> None:
    """Wait until every rank of the group has entered the barrier."""
    if group.size > 1:
        with _collective("barrier", group) as (transport, call):
            transport.barrier(group, call)


@contextmanager
def _collective(
    name: str, group: ProcessGroup, tensor: Tensor | None = None
) -> Iterator[tuple[PaddleCollectives, Collective]]:
    """Context of one tracked collective. On gloo, waits for all ranks first. Raises PeerError if another has ended."""
    if tensor is not None and tensor.dtype not in _DTYPES:
        raise ValueError(f"{name}: tensors of {tensor.dtype} are not supported")
    with track_collective(name, group) as call:
        if group.rendezvous is not None:
            group.rendezvous.wait(name, call.number)
        with _peer_errors(call, group):
            yield transport_of(group), call
        if group.rendezvous is not None:
            call.task = None


@contextmanager
def _peer_errors(call: Collective, group: ProcessGroup) -> Iterator[None]:
    """Turn a broken connection into a PeerError: another rank has ended."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not any(word in str(error).lower() for word in _CONNECTION_ERRORS):
            raise
        first = str(error).strip().splitlines()[0]
        where = call_text(call.name, call.number, group.ranks)
        raise PeerError(f"{PEER_LOST}: another rank ended during {where} ({first})") from error


def _empty_rows(tensor: Tensor, rows: int) -> Tensor:
    return paddle.empty([rows, *tensor.shape[1:]], dtype=tensor.dtype)


def _check_rows(tensor: Tensor, rows: int, group: ProcessGroup, counts: Sequence[int]) -> None:
    if len(counts) != group.size:
        raise ValueError(f"{len(counts)} counts for a group of {group.size} ranks")
    if tensor.shape[0] != rows:
        raise ValueError(f"{tensor.shape[0]} rows, but the counts add up to {rows}")
