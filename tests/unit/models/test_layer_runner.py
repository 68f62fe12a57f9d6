"""A layer as one step of the backward pass: values and gradients are the plain ones, events come in order."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

from erniekit.models.layer_runner import (
    CheckpointedLayers,
    DirectLayers,
    LayerHooks,
    LayerRunner,
    NoHooks,
)


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


def gradients(run: LayerRunner, *, needed: bool = True, frozen: int = 0) -> list[Any]:
    """The loss, gradients of the layers, of the input where `needed`, and random numbers drawn afterwards.

    The first `frozen` layers are frozen: the gradients of their parameters are None.
    """
    model = Layers()
    for layer in model.layers[:frozen]:
        for parameter in layer.parameters():
            parameter.stop_gradient = True
    x = paddle.to_tensor(np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4), stop_gradient=not needed)
    loss = model(x, run)
    loss.backward()
    found = [None if p.grad is None else p.grad.numpy() for p in model.parameters()]
    return [loss.numpy(), *found, *([x.grad.numpy()] if needed else []), paddle.rand([2]).numpy()]


@pytest.mark.parametrize("recompute", [range(0), range(2), range(3)], ids=["none", "partial", "all"])
@pytest.mark.parametrize("hooks", [None, NoHooks()], ids=["alone", "hooks"])
@pytest.mark.parametrize("needed", [False, True])
def test_recomputing_changes_no_bit(recompute: range, hooks: LayerHooks | None, needed: bool) -> None:
    """Not the random numbers either: neither a layer's own, the second time, nor those that come after."""
    expected = gradients(DirectLayers(), needed=needed)
    found = gradients(CheckpointedLayers(hooks, recompute=recompute), needed=needed)
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("recompute", [range(1, 1), range(1, 2), range(1, 3)], ids=["none", "partial", "all"])
def test_layers_below_the_lowest_run_without_a_graph(recompute: range) -> None:
    hooks = Events()
    expected = gradients(DirectLayers(), needed=False)
    found = gradients(CheckpointedLayers(hooks, recompute=recompute, lowest=1), needed=False, frozen=1)
    # The penalty of the first layer adds to the gradients of the first layer alone.
    assert found[1] is None and found[2] is None
    for value, wanted in zip(found[3:], expected[3:], strict=True):
        np.testing.assert_array_equal(value, wanted)
    assert found[0] == expected[0]
    back = [
        line for number in (2, 1) for line in (f"enter {number} back", f"done {number}", f"leave {number}")
    ]
    assert hooks.seen[6:] == back


def test_a_layer_from_the_lowest_on_has_a_backward_pass_whatever_its_input() -> None:
    """On every process, also where its layers have nothing trained: collectives inside must meet."""
    hooks = Events()
    gradients(CheckpointedLayers(hooks), needed=False, frozen=2)
    assert [line for line in hooks.seen if line.startswith("done")] == ["done 2", "done 1", "done 0"]


def test_each_layer_is_done_before_the_one_before_it_begins() -> None:
    hooks = Events()
    gradients(CheckpointedLayers(hooks, recompute=range(3)))
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


@pytest.mark.parametrize("recompute", [range(0), range(3)])
def test_nothing_of_a_layer_outlives_its_backward_pass(recompute: range) -> None:
    """Its input and the gradient of it are gone when the layer below has its turn."""
    layers = nn.LayerList(nn.Linear(4, 4) for _ in range(3))
    inputs: dict[int, weakref.ref[Tensor]] = {}
    alive: dict[int, list[int]] = {}

    class Watch(NoHooks):
        def enter(self, number: int, *, backward: bool) -> None:
            if backward:
                alive[number] = [other for other, ref in inputs.items() if ref() is not None]

    def compute(x: Tensor, number: int) -> tuple[Tensor]:
        inputs[number] = weakref.ref(x)
        return (paddle.tanh(layers[number](x)),)

    run, x = CheckpointedLayers(Watch(), recompute=recompute), paddle.ones([5, 4])
    for number in range(3):
        (x,) = run(number, partial(compute, number=number), x)
    loss = x.sum()
    del x
    loss.backward()
    assert alive == {2: [0, 1, 2], 1: [0, 1], 0: [0]}
