"""The MLP of all experts at once: rows sorted by expert through gate and up, SwiGLU and down."""

from __future__ import annotations

from typing import Any, NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.kernels.grouped_forms import products
from erniekit.kernels.grouped_gemm import ExpertRows, LowRank
from erniekit.kernels.quantize import QuantizedWeight, Weight
from erniekit.kernels.swiglu import swiglu
from erniekit.kernels.tensors import needs_gradient


class ExpertWeight(NamedTuple):
    """One matrix of each expert [E, N, K], and its adapters.

    With lora_a [E, parts * r, K] and lora_b [E, N, r], the matrix of an expert is W + scaling * B A, where each of the
    `parts` equal parts of its rows (gate and up) has its own r rows of A. dropout: of the input of the adapters. A
    quantized matrix is not trained, and stays quantized between the passes.
    """

    weight: Weight
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None
    scaling: float = 1.0
    dropout: float = 0.0


def grouped_mlp(x: Tensor, gate_up: ExpertWeight, down: ExpertWeight, rows: ExpertRows) -> Tensor:
    """down(silu(gate(x)) * up(x)) with the matrices of each row's expert.

    x [n, H], sorted by expert; gate_up [E, 2F, H], gates first; down [E, H, F] -> [n, H].
    """
    if gate_up.dropout or down.dropout:
        # Dropout between the matrix and its adapter: each product is a step of autograd.
        return grouped_linear(swiglu(grouped_linear(x, gate_up, rows)), down, rows)
    tensors = [gate_up.weight, gate_up.lora_a, gate_up.lora_b, down.weight, down.lora_a, down.lora_b]
    return _GroupedMlp.apply(x, *tensors, rows, gate_up.scaling, down.scaling)


def grouped_linear(x: Tensor, weight: ExpertWeight, rows: ExpertRows) -> Tensor:
    """x [n, K], sorted by expert, times the matrix of each row's expert -> [n, N]."""
    step = _QuantizedGroupedLinear if isinstance(weight.weight, QuantizedWeight) else _GroupedLinear
    output = step.apply(x, weight.weight, rows)
    if weight.lora_a is None or weight.lora_b is None:
        return output
    inner = F.dropout(x, weight.dropout) if weight.dropout else x
    low = _GroupedLinear.apply(inner, weight.lora_a, rows) * weight.scaling
    experts, width, rank = weight.lora_b.shape
    parts = low.shape[1] // rank
    if parts == 1:
        return output + _GroupedLinear.apply(low, weight.lora_b, rows)
    halves = weight.lora_b.reshape([experts, parts, width // parts, rank]).unbind(1)
    terms = [
        _GroupedLinear.apply(part, half, rows)
        for part, half in zip(paddle.split(low, parts, axis=1), halves, strict=True)
    ]
    return output + paddle.concat(terms, axis=1)


class _GroupedLinear(paddle.autograd.PyLayer):
    """x W_e^T, one step of autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: ExpertRows) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rows, ctx.needs_gradient = rows, needs_gradient(x, weight)
        return products().gemm(x, weight, rows)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensor()
        for_x, for_weight = ctx.needs_gradient
        form = products()
        return (
            form.dx(dy, weight, ctx.rows) if for_x else None,
            form.dw(dy, x, ctx.rows) if for_weight else None,
        )


class _QuantizedGroupedLinear(paddle.autograd.PyLayer):
    """x W_e^T, with a gradient of x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedWeight, rows: ExpertRows) -> Tensor:
        ctx.weight, ctx.rows = weight, rows
        return products().gemm(x, weight, rows)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return products().dx(dy, ctx.weight, ctx.rows)


class _GroupedMlp(paddle.autograd.PyLayer):
    """The whole MLP as one step of autograd.

    Keeps the input, gate and up before SwiGLU, and the rows of low rank; the product of SwiGLU is computed again. The
    scaling of adapters is applied to rows of low rank. With u = s x A^T and v = s dh B: h = x W^T + u B^T,
    dx = dh W + v A, dA = v^T x, dB = dh^T u.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate_up: Weight,
        a1: Tensor | None,
        b1: Tensor | None,
        down: Weight,
        a2: Tensor | None,
        b2: Tensor | None,
        rows: ExpertRows,
        scaling1: float,
        scaling2: float,
    ) -> Tensor:
        form = products()
        ctx.needs_gradient = [
            isinstance(t, Tensor) and needs_gradient(t)[0] for t in (x, gate_up, a1, b1, down, a2, b2)
        ]
        ctx.rows, ctx.scaling = rows, (scaling1, scaling2)
        low1 = None if a1 is None else LowRank(form.gemm(x, a1, rows, scale=scaling1), b1)
        h, activation = form.gate_up(x, gate_up, rows, low1)
        low2 = None if a2 is None else LowRank(form.gemm(activation, a2, rows, scale=scaling2), b2)
        output = form.gemm(activation, down, rows, low2)
        kept = {"x": x, "gate_up": gate_up, "a1": a1, "b1": b1, "down": down, "a2": a2, "b2": b2, "h": h}
        kept |= {"u1": low1 and low1.rows, "u2": low2 and low2.rows}
        ctx.quantized = {name: weight for name, weight in kept.items() if isinstance(weight, QuantizedWeight)}
        ctx.names = [name for name, tensor in kept.items() if isinstance(tensor, Tensor)]
        ctx.save_for_backward(*(kept[name] for name in ctx.names))
        return output

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        form, rows = products(), ctx.rows
        kept = ctx.quantized | dict(zip(ctx.names, ctx.saved_tensor(), strict=True))
        for_x, for_gate_up, for_a1, for_b1, for_down, for_a2, for_b2 = ctx.needs_gradient
        low2 = None
        if "a2" in kept:
            low2 = LowRank(form.dx(dy, kept["b2"], rows, scale=ctx.scaling[1]), kept["a2"])
        dh, activation = form.down_dx(dy, kept["down"], kept["h"], rows, low2)
        low1 = None
        if "a1" in kept:
            parts = kept["u1"].shape[1] // kept["b1"].shape[2]
            low1 = LowRank(form.dx(dh, kept["b1"], rows, parts=parts, scale=ctx.scaling[0]), kept["a1"])
        gradients: list[Tensor | None] = [form.dx(dh, kept["gate_up"], rows, low1) if for_x else None]
        # A quantized weight is no tensor, and has no gradient.
        if "gate_up" in ctx.names:
            gradients.append(form.dw(dh, kept["x"], rows) if for_gate_up else None)
        if low1 is not None:
            gradients.append(form.dw(low1.rows, kept["x"], rows) if for_a1 else None)
            gradients.append(form.dw(dh, kept["u1"], rows, parts=parts) if for_b1 else None)
        if "down" in ctx.names:
            gradients.append(form.dw(dy, activation, rows) if for_down else None)
        if low2 is not None:
            gradients.append(form.dw(low2.rows, activation, rows) if for_a2 else None)
            gradients.append(form.dw(dy, kept["u2"], rows) if for_b2 else None)
        return tuple(gradients)
