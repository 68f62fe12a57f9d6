"""Exceptions that are raised inside a backward pass are recovered."""

from __future__ import annotations

from typing import Any, cast

import paddle
import pytest
from paddle import Tensor
from paddle.autograd import PyLayer

from erniekit.data.encode.stats import ErrorBudget
from erniekit.distributed.context import DistributedContext
from erniekit.distributed.failures import error_of_all, is_of_all, original_error
from erniekit.distributed.skipped_samples import SkippedSampleSync
from erniekit.distributed.watchdog import PEER_LOST, PeerError
from erniekit.errors import DataError
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


def test_too_many_skipped_samples_are_an_error_of_all_processes() -> None:
    """So that they can save the steps before together."""

    class Both:
        def all_gather_object(self, own: Any) -> list[Any]:
            return [own, [["b.jsonl:1", "image", "cannot be read"], ["b.jsonl:2", "image", "cannot be read"]]]

    budget = ErrorBudget("skip", 1)
    with pytest.raises(DataError, match=r"more than data\.max_errors=1") as raised:
        SkippedSampleSync(budget, cast(DistributedContext, Both())).share()
    assert is_of_all(raised.value)
    assert not is_of_all(DataError("of one"))
    assert is_of_all(error_of_all(None)) and PEER_LOST in str(error_of_all(None))
