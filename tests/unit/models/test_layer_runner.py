"""A layer as one step of the backward pass: values and gradients are the plain ones, events come in order."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

from erniekit.models.layer_runner import CheckpointedLayers, DirectLayers, LayerRunner
from tests.closeness import assert_close


class Layers(nn.Layer):
    """Three layers that also return a count and a sum with a graph, and draw random numbers."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        paddle.seed(3)
        self.layers = nn.LayerList(nn.Linear(4, 4) for _ in range(3))
        self.dropout = dropout

    def forward(self, x: Tensor, run: LayerRunner) -> Tensor:
        total = paddle.zeros([])
        for number, layer in enumerate(self.layers):

            def compute(x: Tensor, layer: nn.Layer = layer) -> tuple[Tensor, ...]:
                y = nn.functional.dropout(paddle.tanh(layer(x)), self.dropout)
                return x + y, paddle.bincount(paddle.arange(3)), y.square().sum(), y.detach().sum()

            x, counts, penalty, plain = run(number, compute, x)
            assert counts.stop_gradient and counts.tolist() == [1, 1, 1]
            total = total + penalty + plain
        return x.sum() + total


class Events:
    """Writes down what happens."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def enter(self, number: int, *, backward: bool) -> None:
        self.seen.append(f"enter {number} {'back' if backward else 'forth'}")

    def leave(self, number: int) -> None:
        self.seen.append(f"leave {number}")

    def done(self, number: int) -> None:
        self.seen.append(f"done {number}")


def gradients(run: LayerRunner, *, needed: bool = True) -> list[np.ndarray]:
    model = Layers()
    x = paddle.to_tensor(np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4), stop_gradient=not needed)
    loss = model(x, run)
    loss.backward()
    found = [parameter.grad.numpy() for parameter in model.parameters()]
    return [loss.numpy(), *found, *([x.grad.numpy()] if needed else []), paddle.rand([2]).numpy()]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("needed", [False, True])
def test_segments_change_nothing(recompute: bool, needed: bool) -> None:
    """Not the random numbers either: neither a layer's own, the second time, nor those that come after."""
    expected = gradients(DirectLayers(), needed=needed)
    for value, wanted in zip(
        gradients(CheckpointedLayers(recompute=recompute), needed=needed), expected, strict=True
    ):
        assert_close(value, wanted)


def test_each_layer_is_done_before_the_one_before_it_begins() -> None:
    hooks = Events()
    gradients(CheckpointedLayers(hooks, recompute=True))
    forth = [line for number in (0, 1, 2) for line in (f"enter {number} forth", f"leave {number}")]
    back = [
        line for number in (2, 1, 0) for line in (f"enter {number} back", f"done {number}", f"leave {number}")
    ]
    assert hooks.seen == forth + back


def test_without_gradients_there_is_only_the_way_forth() -> None:
    hooks = Events()
    with paddle.no_grad():
        Layers()(paddle.ones([5, 4]), CheckpointedLayers(hooks))
    assert hooks.seen == [
        line for number in (0, 1, 2) for line in (f"enter {number} forth", f"leave {number}")
    ]
