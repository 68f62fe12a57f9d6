"""Exceptions that are raised inside a backward pass are recovered."""

from __future__ import annotations

from typing import Any

import paddle
import pytest
from paddle import Tensor
from paddle.autograd import PyLayer

from erniekit.distributed.failures import original_error
from erniekit.distributed.watchdog import PeerError
from erniekit.models.layer_runner import CheckpointedLayers

MESSAGE = "lost the other ranks: rank 1 ended before all_to_all (call 7 of ranks 0, 1)"


class Fails(PyLayer):
    """Its backward pass raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: BaseException) -> Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ctx.error


@pytest.mark.parametrize("error", [PeerError(MESSAGE), KeyboardInterrupt()], ids=["peer", "interrupt"])
@pytest.mark.parametrize("nested", [False, True])
def test_the_exception_is_recovered(error: BaseException, nested: bool) -> None:
    x = paddle.ones([2])
    x.stop_gradient = False
    if nested:
        (y,) = CheckpointedLayers(recompute=range(1))(0, lambda z: (Fails.apply(z, error),), x)
    else:
        y = Fails.apply(x, error)
    with pytest.raises(OSError) as caught:
        y.sum().backward()
    found = original_error(caught.value)
    assert type(found) is type(error)
    assert str(found) == str(error)


def test_other_errors_are_unchanged() -> None:
    error = OSError("(External) Out of memory")
    assert original_error(error) is error
