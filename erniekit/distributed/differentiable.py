"""Collectives through which gradients go."""

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
    """`all_to_all` whose gradient goes back the same way.

    Either every rank's x needs a gradient or none's: the backward pass is a collective, too.
    """
    if group.size == 1:
        return x
    rows: Tensor = _AllToAllRows.apply(x, list(send), list(recv), group)
    return rows


def start_all_to_all_rows(
    x: Tensor, send: Sequence[int], recv: Sequence[int], group: ProcessGroup
) -> Callable[[], Tensor]:
    """`all_to_all_rows` in two steps: the rows of x leave now; what is returned waits for those that come.

    It is called once. In the backward pass it is where gradients leave, and here they are waited for, so that what
    autograd computes in between runs beside their exchange, too.
    """
    if group.size == 1:
        return lambda: x
    journey = _Journey(list(send), list(recv), group)
    token = _Leave.apply(x, journey)
    return lambda: _Arrive.apply(token, journey)


def shared_sum(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over all ranks of x, which has one shape everywhere; what comes of it must be the same everywhere.

    The gradient of such a loss, counted once, is for each rank's x the one that arrives there.
    """
    if group.size == 1:
        return x
    total: Tensor = _SharedSum.apply(x, group)
    return total


class _AllToAllRows(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], recv: list[int], group: ProcessGroup) -> Tensor:
        ctx.way = send, recv, group
        return all_to_all(x, send, recv, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        send, recv, group = ctx.way
        return all_to_all(gradient, recv, send, group)


class _Journey:
    """What the two ends of `start_all_to_all_rows` share.

    Autograd sees a token between them, never the place of rows that have not come yet.
    """

    def __init__(self, send: list[int], recv: list[int], group: ProcessGroup) -> None:
        self._way = send, recv
        self._group = group
        self._under_way: AsyncWork | None = None

    def leave(self, rows: Tensor, *, back: bool = False) -> Tensor:
        """Start; the token."""
        send, recv = reversed(self._way) if back else self._way
        self._under_way = start_all_to_all(rows, send, recv, self._group)
        return paddle.zeros([1], rows.dtype)

    def arrive(self) -> Tensor:
        """The rows that came."""
        assert self._under_way is not None
        rows = self._under_way.wait()
        self._under_way = None
        return rows


class _Leave(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, journey: _Journey) -> Tensor:
        ctx.journey = journey
        return journey.leave(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rows: Tensor = ctx.journey.arrive()
        return rows


class _Arrive(PyLayer):
    @staticmethod
    def forward(ctx: Any, token: Tensor, journey: _Journey) -> Tensor:
        ctx.journey = journey
        return journey.arrive()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        token: Tensor = ctx.journey.leave(gradient, back=True)
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
