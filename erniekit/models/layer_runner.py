"""Running the layers of a decoder or a vision tower one at a time, in the forward and the backward pass.

`DirectLayers` leaves the backward pass to autograd. `CheckpointedLayers` makes each layer a separate step of it, so
that its activations can be recomputed, its weights gathered and its gradients reduced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

# A layer: its input [T, hidden] -> its output, and further tensors.
Run = Callable[[Tensor], tuple[Tensor, ...]]


class LayerRunner(Protocol):
    """Runs layer `number`."""

    def __call__(self, number: int, run: Run, x: Tensor) -> tuple[Tensor, ...]:
        """`run(x)`, with a graph if gradients are enabled."""
        ...


class LayerHooks(Protocol):
    """Called around each layer."""

    def enter(self, number: int, *, backward: bool) -> None:
        """Before the forward pass of a layer, or its backward pass."""
        ...

    def leave(self, number: int) -> None:
        """After it."""
        ...

    def done(self, number: int) -> None:
        """In the backward pass: the gradients of the layer's parameters are complete for this row."""
        ...


class NoHooks:
    """Does nothing."""

    def enter(self, number: int, *, backward: bool) -> None:
        pass

    def leave(self, number: int) -> None:
        pass

    def done(self, number: int) -> None:
        pass


class DirectLayers:
    """Runs layers directly."""

    def __call__(self, number: int, run: Run, x: Tensor) -> tuple[Tensor, ...]:
        return run(x)


class CheckpointedLayers:
    """Runs each layer as one step of the backward pass.

    hooks: None on a single process, where layers that are not recomputed are left to autograd. recompute: the layers
    that keep only their input and are computed again in the backward pass, with the same random numbers. lowest: the
    lowest layer with a backward pass; those below run without a graph. The input of every other layer with hooks
    requires a gradient: the steps of the backward pass depend on the model alone, never on the row of a process.
    """

    def __init__(
        self, hooks: LayerHooks | None = None, *, recompute: range = range(0), lowest: int = 0
    ) -> None:
        self.hooks, self.recompute, self.lowest = hooks, recompute, lowest

    def __call__(self, number: int, run: Run, x: Tensor) -> tuple[Tensor, ...]:
        if not paddle.is_grad_enabled() or number < self.lowest:
            return self._without_graph(number, run, x)
        recompute = number in self.recompute
        if self.hooks is None and not recompute:
            return run(x)
        if x.stop_gradient:
            x = x.detach()
            x.stop_gradient = False
        segment = _Segment(self.hooks or NoHooks(), number, run, recompute)
        found: tuple[Tensor, ...] = _Step.apply(x, segment)
        return found

    @paddle.no_grad()
    def _without_graph(self, number: int, run: Run, x: Tensor) -> tuple[Tensor, ...]:
        hooks = self.hooks or NoHooks()
        hooks.enter(number, backward=False)
        outputs = run(x)
        hooks.leave(number)
        return outputs


class _Segment(NamedTuple):
    hooks: LayerHooks
    number: int
    run: Run
    recompute: bool


class _Step(PyLayer):
    """Runs the backward pass of the layer to its end before the rest of the backward pass continues."""

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
