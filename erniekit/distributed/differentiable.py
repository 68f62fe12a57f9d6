"""Collectives with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from erniekit.distributed.collectives import (
    AsyncWork,
    all_reduce_,
    all_to_all,
    start_all_to_all,
)
from erniekit.distributed.process_group import ProcessGroup


def all_to_all_rows(x: Tensor, send: Sequence[int], recv: Sequence[int], group: ProcessGroup) -> Tensor:
    """`all_to_all`, with the reverse all-to-all as its backward pass.

    x must need a gradient on all ranks or on none: the backward pass is a collective, too.
    """
    if group.size == 1:
        return x
    rows: Tensor = _AllToAllRows.apply(x, list(send), list(recv), group)
    return rows


def start_all_to_all_rows(
    x: Tensor, send: Sequence[int], recv: Sequence[int], group: ProcessGroup
) -> Callable[[], Tensor]:
    """Start an `all_to_all_rows`; the returned function waits for its result. Call it once.

    In the backward pass that function starts the exchange of the gradients and this one waits for it, so that the
    backward pass of the computation in between overlaps with the exchange.
    """
    if group.size == 1:
        return lambda: x
    exchange = _AsyncExchange(list(send), list(recv), group)
    token = _Start.apply(x, exchange)
    return lambda: _Wait.apply(token, exchange)


def shared_sum(x: Tensor, group: ProcessGroup) -> Tensor:
    """All-reduce (sum) of x, of the same shape on all ranks, with the identity as its backward pass.

    The computation that follows must be the same on all ranks. The gradient is that of a loss that is counted once.
    """
    if group.size == 1:
        return x
    total: Tensor = _SharedSum.apply(x, group)
    return total


class _AllToAllRows(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], recv: list[int], group: ProcessGroup) -> Tensor:
        ctx.arguments = send, recv, group
        return all_to_all(x, send, recv, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        send, recv, group = ctx.arguments
        return all_to_all(gradient, recv, send, group)


class _AsyncExchange:
    """The state that both ends of `start_all_to_all_rows` share.

    Between them autograd sees a token, never a buffer of rows that have not arrived yet.
    """

    def __init__(self, send: list[int], recv: list[int], group: ProcessGroup) -> None:
        self._counts = send, recv
        self._group = group
        self._work: AsyncWork | None = None

    def start(self, rows: Tensor, *, reverse: bool = False) -> Tensor:
        """Start the exchange; returns the token."""
        send, recv = reversed(self._counts) if reverse else self._counts
        self._work = start_all_to_all(rows, send, recv, self._group)
        return paddle.zeros([1], rows.dtype)

    def wait(self) -> Tensor:
        """The received rows."""
        assert self._work is not None
        rows = self._work.wait()
        self._work = None
        return rows


class _Start(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: _AsyncExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.start(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rows: Tensor = ctx.exchange.wait()
        return rows


class _Wait(PyLayer):
    @staticmethod
    def forward(ctx: Any, token: Tensor, exchange: _AsyncExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.wait()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        token: Tensor = ctx.exchange.start(gradient, reverse=True)
        return token


class _SharedSum(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        total = x.clone()
        all_reduce_(total, group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
