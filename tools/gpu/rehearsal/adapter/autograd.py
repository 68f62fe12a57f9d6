"""`paddle.autograd`: steps of the backward pass that are written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .tensor import Tensor, unwrap


class PyLayerContext:
    """What the forward pass leaves for the backward pass: saved tensors, and any attributes."""

    def __init__(self) -> None:
        self._saved: tuple[torch.Tensor, ...] = ()
        self._constant: tuple[torch.Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self._saved = tuple(tensor.raw for tensor in tensors)

    def saved_tensor(self) -> tuple[Tensor, ...]:
        return tuple(Tensor(raw) for raw in self._saved)

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self._constant = tuple(tensor.raw for tensor in tensors)


class PyLayer:
    """A step with its own backward pass, which returns one gradient, or None, for each tensor among the arguments."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        tensors = [value.raw for value in arguments if isinstance(value, Tensor)]
        found = _Step.apply(cls, arguments, *tensors)
        return tuple(map(Tensor, found)) if isinstance(found, tuple) else Tensor(found)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: type[PyLayer], arguments: tuple[Any, ...], *tensors: torch.Tensor) -> Any:
        raws = iter(tensors)
        values = [Tensor(next(raws)) if isinstance(value, Tensor) else value for value in arguments]
        context = PyLayerContext()
        outputs = layer.forward(context, *values)
        ctx.layer, ctx.context = layer, context
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        # torch keeps them, so that they are freed after the backward pass; the context does not.
        ctx.save_for_backward(*context._saved)
        ctx.mark_non_differentiable(*context._constant)
        context._saved = context._constant = ()
        return tuple(map(unwrap, outputs)) if isinstance(outputs, tuple) else outputs.raw

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        context = ctx.context
        context._saved = ctx.saved_tensors
        found = ctx.layer.backward(context, *map(Tensor, gradients))
        context._saved = ()
        found = found if isinstance(found, tuple) else (found,)
        if len(found) != len(ctx.dtypes):
            raise ValueError(f"{ctx.layer.__name__}: {len(found)} gradients of {len(ctx.dtypes)} tensors")
        for gradient, dtype in zip(found, ctx.dtypes, strict=True):
            if gradient is not None and gradient.dtype != dtype:
                raise ValueError(f"{ctx.layer.__name__}: a gradient {gradient.dtype} of a tensor {dtype}")
        return None, None, *map(unwrap, found)


def backward(tensors: Sequence[Tensor], grad_tensors: Sequence[Tensor | None]) -> None:
    """Also inside the backward pass of a `PyLayer`."""
    if tensors:
        torch.autograd.backward([x.raw for x in tensors], [unwrap(gradient) for gradient in grad_tensors])
