"""Running the layers of a decoder, one at a time in both passes.

`DirectLayers` leaves the backward pass to autograd as a whole. `CheckpointedLayers` makes each layer a step of it that
begins and ends at a known time, so that its activations can be recomputed, its weights gathered and its gradients
reduced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

# What a layer makes of its input [T, hidden]: its output, and further tensors.
Run = Callable[[Tensor], tuple[Tensor, ...]]


class LayerRunner(Protocol):
    """Runs layer `number`."""

    def __call__(self, number: int, run: Run, x: Tensor) -> tuple[Tensor, ...]:
        """What `run` makes of x, with a graph where one is wanted."""
        ...


class LayerHooks(Protocol):
    """What has to happen around a layer."""

    def enter(self, number: int, *, backward: bool) -> None:
        """Before a layer is computed, in the forward pass or in the backward pass."""
        ...

    def leave(self, number: int) -> None:
        """After it."""
        ...

    def done(self, number: int) -> None:
        """In the backward pass: the row's gradients of its parameters are complete."""
        ...


class NoHooks:
    """Nothing has to happen."""

    def enter(self, number: int, *, backward: bool) -> None:
        pass

    def leave(self, number: int) -> None:
        pass

    def done(self, number: int) -> None:
        pass


class DirectLayers:
    """A layer as it is."""

    def __call__(self, number: int, run: Run, x: Tensor) -> tuple[Tensor, ...]:
        return run(x)


class CheckpointedLayers:
    """A layer as one step of the backward pass.

    recompute: keep only the layer's input, and compute the layer again in the backward pass, with the randomness of
    the first time. The input is always taken to need a gradient, whatever came before: so the backward pass is the
    same on every process.
    """

    def __init__(self, hooks: LayerHooks | None = None, *, recompute: bool = False) -> None:
        self.hooks: LayerHooks = hooks or NoHooks()
        self.recompute = recompute

    def __call__(self, number: int, run: Run, x: Tensor) -> tuple[Tensor, ...]:
        if not paddle.is_grad_enabled():
            self.hooks.enter(number, backward=False)
            outputs = run(x)
            self.hooks.leave(number)
            return outputs
        if x.stop_gradient:
            x = x.detach()
            x.stop_gradient = False
        segment = _Segment(self.hooks, number, run, self.recompute)
        found: tuple[Tensor, ...] = _Step.apply(x, segment)
        return found


class _Segment(NamedTuple):
    hooks: LayerHooks
    number: int
    run: Run
    recompute: bool


class _Step(PyLayer):
    """Backward runs the layer's own graph to its end before anything else of the backward pass goes on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, segment: _Segment) -> tuple[Tensor, ...]:
        inner = x.detach()
        inner.stop_gradient = False
        segment.hooks.enter(segment.number, backward=False)
        ctx.segment, ctx.inner, ctx.outputs = segment, inner, None
        if segment.recompute:
            ctx.random = paddle.get_rng_state()
            with paddle.no_grad():
                outputs = segment.run(inner)
        else:
            with paddle.enable_grad():
                ctx.outputs = outputs = segment.run(inner)
        segment.hooks.leave(segment.number)
        copies = tuple(output.detach() for output in outputs)
        ctx.mark_non_differentiable(*(copy for copy in copies if not copy.is_floating_point()))
        return copies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        segment, inner, outputs = ctx.segment, ctx.inner, ctx.outputs
        segment.hooks.enter(segment.number, backward=True)
        if segment.recompute:
            after = paddle.get_rng_state()
            paddle.set_rng_state(ctx.random)
            with paddle.enable_grad():
                outputs = segment.run(inner)
            paddle.set_rng_state(after)
        wanted = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if not output.stop_gradient
        ]
        paddle.autograd.backward([output for output, _ in wanted], [gradient for _, gradient in wanted])
        ctx.outputs = None
        segment.hooks.done(segment.number)
        segment.hooks.leave(segment.number)
        found: Tensor = inner.grad
        return found
