"""Check and time the Triton kernels of norms, rotation, SwiGLU and permutation on a GPU. Needs torch, not Paddle.

    python tools/gpu/kernels_pointwise.py [--seed 0]

Every kernel is compared with float64 over random inputs, at 1 to 32,768 tokens; outputs are filled with NaN before. The
table gives milliseconds (median, a cold cache), the bytes that must be moved (each input read once, each output
written once) per second, that as a share of a copy of 4 GiB and of a copy of as many bytes, and the time of the same
formula in torch's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timing import BF16, compare, copy_bandwidth, describe_versions, seed_inputs, time_in_graph
from torch import Tensor

from erniekit.kernels.triton import permute, rms_norm, rope, swiglu

EPS = 1e-5
TOP_K, EXPERTS = 6, 64


class Case(NamedTuple):
    """`run` writes `outputs`, which are `reference()` in float64; `composed` does the same with torch's operators."""

    name: str
    sizes: str
    run: Callable[[], None]
    outputs: list[Tensor]
    reference: Callable[[], tuple[Tensor, ...]]
    composed: Callable[[], object]
    inputs: list[Tensor]

    @property
    def bytes(self) -> int:
        """Of each input read once and each output written once."""
        return sum(tensor.nbytes for tensor in (*self.inputs, *self.outputs))


def main() -> None:
    """Check all sizes, then print the table."""
    seed_inputs(__doc__)
    for dtype in (BF16, torch.float32):
        for tokens, width, heads, kv_heads, inner in (
            (1, 512, 2, 1, 512),
            (2048, 1536, 12, 2, 512),
            (8191, 3584, 28, 4, 1536),
            (32768, 512, 3, 1, 32),
        ):
            for case in cases(tokens, width, heads, kv_heads, inner, dtype):
                check(case, dtype)
    print("all kernels agree with float64, in bfloat16 and float32")
    copy = copy_bandwidth(8 << 30, time)
    print(describe_versions())
    print(f"a copy of 4 GiB: {copy:.2f} TB/s\n")
    print("| kernel | sizes | ms | TB/s | of 4 GiB's | of its own size's | torch's operators, ms |")
    print("|---|---|---|---|---|---|---|")
    for case in cases(8192, 2560, 20, 4, 1536, BF16):
        ms, composed = time(case.run), time(case.composed)
        rate, small = case.bytes / ms / 1e9, copy_bandwidth(case.bytes, time)
        shares = f"{rate / copy:.0%} | {rate / small:.0%}"
        print(
            f"| {case.name} | {case.sizes} | {ms:.4f} | {rate:.2f} | {shares} | {composed:.3f} |", flush=True
        )


def cases(
    tokens: int, width: int, heads: int, kv_heads: int, inner: int, dtype: torch.dtype
) -> Iterator[Case]:
    """Every kernel, at the sizes of one model."""
    yield from norms(tokens, width, dtype)
    yield from rotations(tokens, heads, kv_heads, 128, dtype)
    yield from rotated_halves(tokens, 32, 80, dtype)
    yield from gates(tokens * TOP_K, inner, dtype)
    yield from permutations(tokens, width, dtype)


def norms(tokens: int, width: int, dtype: torch.dtype) -> Iterator[Case]:
    """RMSNorm, alone and with a residual, with the gradient of the weight and without."""
    x, residual, grad, grad_total = (random(tokens, width, dtype=dtype) for _ in range(4))
    weight = random(width, dtype=dtype)
    out, total, grad_x, grad_weight = (empty(x), empty(x), empty(x), empty(weight))
    scale = torch.rsqrt(x.float().square().mean(-1) + EPS)
    new_scale = empty(scale)
    partial = torch.empty(min(rms_norm.PROGRAMS, tokens), width, device="cuda")
    sizes = f"{tokens:,} x {width:,}"

    def formula(x: Tensor) -> Tensor:
        wide = x.double()
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)

    def composed(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * weight

    def gradients(added: Tensor | None) -> tuple[Tensor, ...]:
        wide, w = x.double().requires_grad_(), weight.double().requires_grad_()
        output = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * w
        found = torch.autograd.grad(output, (wide, w), grad.double())
        return (found[0] if added is None else found[0] + added.double(), found[1])

    yield Case(
        "RMSNorm, forward",
        sizes,
        lambda: rms_norm.rms_norm_forward(x, weight, EPS, out, new_scale),
        [out, new_scale],
        lambda: (formula(x) * weight.double(), torch.rsqrt(x.double().square().mean(-1) + EPS)),
        lambda: composed(x, weight),
        [x, weight],
    )
    yield Case(
        "with a residual, forward",
        sizes,
        lambda: rms_norm.rms_norm_forward(x, weight, EPS, out, new_scale, residual, total),
        [out, total],
        lambda: (formula(x + residual) * weight.double(), x.double() + residual.double()),
        lambda: composed(x + residual, weight),
        [x, residual, weight],
    )

    def backward(added: Tensor | None) -> None:
        rms_norm.rms_norm_backward(grad, x, weight, scale, grad_x, partial, added)
        rms_norm.sum_partial(partial, grad_weight)

    for name, added in (("RMSNorm, backward", None), ("with a residual, backward", grad_total)):
        yield Case(
            name,
            sizes,
            lambda added=added: backward(added),
            [grad_x, grad_weight],
            lambda added=added: gradients(added),
            Composed(lambda x, w: composed(x, w), [x, weight], [grad]),
            [grad, x, weight, scale, *([] if added is None else [added])],
        )
    yield Case(
        "RMSNorm, backward, frozen weight",
        sizes,
        lambda: rms_norm.rms_norm_backward(grad, x, weight, scale, grad_x),
        [grad_x],
        lambda: gradients(None)[:1],
        Composed(lambda x: composed(x, weight), [x], [grad]),
        [grad, x, weight, scale],
    )


def rotations(tokens: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> Iterator[Case]:
    """Neighbouring channels of queries and keys. The backward pass is the same kernel."""
    query, key = random(tokens, heads, width, dtype=dtype), random(tokens, kv_heads, width, dtype=dtype)
    angles = torch.rand(tokens, width // 2, device="cuda") * 6.3
    rotation = torch.stack([torch.cos(angles), torch.sin(angles)], -1)
    outputs = [empty(query), empty(key)]

    def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        rotated = first * cosine - second * sine, second * cosine + first * sine
        return torch.stack(rotated, -1).flatten(-2)

    for name, sign in (("rotary, forward", 1.0), ("rotary, backward", -1.0)):

        def all_turned(convert: Callable[[Tensor], Tensor], sign: float = sign) -> tuple[Tensor, ...]:
            cosine, sine = (x[:, None] for x in convert(rotation).unbind(-1))
            return tuple(turned(convert(x), cosine, sine * sign) for x in (query, key))

        yield Case(
            name,
            f"{tokens:,} x {heads} + {kv_heads} heads x {width}",
            lambda sign=sign: rope.rotate_pairs(query, key, rotation, *outputs, inverse=sign < 0),
            outputs,
            lambda turn=all_turned: turn(Tensor.double),
            lambda turn=all_turned: [x.to(dtype) for x in turn(Tensor.float)],
            [query, key, rotation],
        )


def rotated_halves(tokens: int, heads: int, width: int, dtype: torch.dtype) -> Iterator[Case]:
    """The vision tower's rotation."""
    x = random(tokens, heads, width, dtype=dtype)
    angles = torch.rand(tokens, 1, width // 2, device="cuda") * 6.3
    cosine, sine = torch.cos(angles), torch.sin(angles)
    output = empty(x)

    def turned(convert: Callable[[Tensor], Tensor]) -> Tensor:
        first, second = convert(x).chunk(2, -1)
        cos, sin = convert(cosine), convert(sine)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    yield Case(
        "rotary of halves",
        f"{tokens:,} x {heads} heads x {width}",
        lambda: rope.rotate_halves(x, cosine, sine, output, inverse=False),
        [output],
        lambda: (turned(Tensor.double),),
        lambda: turned(Tensor.float).to(dtype),
        [x, cosine, sine],
    )


def gates(rows: int, width: int, dtype: torch.dtype) -> Iterator[Case]:
    """SwiGLU of the halves of one tensor, and of two."""
    joined, grad = random(rows, 2 * width, dtype=dtype), random(rows, width, dtype=dtype)
    gate, up = (half.contiguous() for half in joined.chunk(2, -1))
    out, grad_joined, grad_gate, grad_up = empty(grad), empty(joined), empty(gate), empty(up)
    sizes = f"{rows:,} x {2 * width:,}"

    def formula(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return F.silu(first) * second

    def gradient() -> Tensor:
        x = joined.double().requires_grad_()
        return torch.autograd.grad(formula(x), x, grad.double())[0]

    yield Case(
        "SwiGLU, forward",
        sizes,
        lambda: swiglu.swiglu_forward(joined, None, out),
        [out],
        lambda: (formula(joined.double()),),
        lambda: formula(joined),
        [joined],
    )
    yield Case(
        "SwiGLU, backward",
        sizes,
        lambda: swiglu.swiglu_backward(grad, joined, None, grad_joined, None),
        [grad_joined],
        lambda: (gradient(),),
        Composed(formula, [joined], [grad]),
        [grad, joined],
    )
    yield Case(
        "SwiGLU of two tensors, forward",
        sizes,
        lambda: swiglu.swiglu_forward(gate, up, out),
        [out],
        lambda: (formula(joined.double()),),
        lambda: F.silu(gate) * up,
        [gate, up],
    )
    yield Case(
        "SwiGLU of two tensors, backward",
        sizes,
        lambda: swiglu.swiglu_backward(grad, gate, up, grad_gate, grad_up),
        [grad_gate, grad_up],
        lambda: gradient().chunk(2, -1),
        Composed(lambda g, u: F.silu(g) * u, [gate, up], [grad]),
        [grad, gate, up],
    )


def permutations(tokens: int, width: int, dtype: torch.dtype) -> Iterator[Case]:
    """Sorting by expert, rows to their experts and back."""
    experts = torch.rand(tokens, EXPERTS, device="cuda").topk(TOP_K, dim=1).indices
    flat = experts.flatten()
    order = torch.argsort(flat, stable=True).int()
    slots = torch.argsort(order).int().reshape(tokens, TOP_K)
    x, grad = random(tokens, width, dtype=dtype), random(tokens, width, dtype=dtype)
    y, weights = random(tokens * TOP_K, width, dtype=dtype), torch.rand(tokens, TOP_K, device="cuda")
    rows, sums, grad_y, grad_weights = empty(y), empty(x), empty(y), empty(weights)
    new_order, new_slots = empty(order), empty(slots)
    offsets = torch.empty(EXPERTS + 1, dtype=torch.int32, device="cuda")
    counts = torch.empty(EXPERTS, permute.blocks_of_pairs(tokens * TOP_K), dtype=torch.int32, device="cuda")
    buffers = counts, empty(counts), torch.empty(EXPERTS, dtype=torch.int32, device="cuda")
    index = order.long() // TOP_K
    places = slots.long()
    sizes = f"{tokens:,} x {width:,}, top-{TOP_K}"

    def sums_of(y: Tensor, weights: Tensor) -> Tensor:
        return (y[places] * weights.unsqueeze(-1)).sum(1)

    def gradients() -> tuple[Tensor, ...]:
        scaled = grad.double()[index] * weights.double().flatten()[order.long()].unsqueeze(1)
        return scaled, (y[places].double() * grad.double().unsqueeze(1)).sum(-1)

    yield Case(
        "sort by expert",
        f"{tokens:,} x {TOP_K} of {EXPERTS}",
        lambda: permute.sort_by_expert(experts, new_order, new_slots, offsets, *buffers),
        [new_order, new_slots, offsets],
        lambda: (order, slots, F.pad(flat.bincount(minlength=EXPERTS).cumsum(0), (1, 0))),
        lambda: (torch.argsort(torch.argsort(flat, stable=True)), flat.bincount(minlength=EXPERTS)),
        [experts],
    )
    yield Case(
        "permute, forward",
        sizes,
        lambda: permute.copy_rows(x, slots, rows),
        [rows],
        lambda: (x[index].double(),),
        lambda: x[index],
        [x, slots],
    )
    yield Case(
        "permute, backward",
        sizes,
        lambda: permute.sum_rows(y, slots, None, sums),
        [sums],
        lambda: (y[places].double().sum(1),),
        Composed(lambda x: x[index], [x], [y]),
        [y, slots],
    )
    yield Case(
        "unpermute, forward",
        sizes,
        lambda: permute.sum_rows(y, slots, weights, sums),
        [sums],
        lambda: (sums_of(y.double(), weights.double()),),
        lambda: sums_of(y, weights.to(dtype)),
        [y, slots, weights],
    )
    yield Case(
        "unpermute, backward",
        sizes,
        lambda: permute.unpermute_backward(grad, y, slots, weights, grad_y, grad_weights),
        [grad_y, grad_weights],
        gradients,
        Composed(sums_of, [y, weights.to(dtype)], [grad]),
        [grad, y, slots, weights],
    )


class Composed:
    """The backward pass of a formula in torch's operators."""

    def __init__(self, formula: Callable[..., Tensor], inputs: list[Tensor], grads: list[Tensor]) -> None:
        self._formula, self._grads = formula, grads
        self._inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        self._output: Tensor | None = None

    def __call__(self) -> object:
        if self._output is None:
            self._output = self._formula(*self._inputs)
        return torch.autograd.grad(self._output, self._inputs, self._grads, retain_graph=True)


def check(case: Case, dtype: torch.dtype) -> None:
    """Compare the outputs with float64."""
    for output in case.outputs:
        output.fill_(float("nan") if output.is_floating_point() else -1)
    case.run()
    for number, (output, expected) in enumerate(zip(case.outputs, case.reference(), strict=True)):
        compare(f"{case.name}, {case.sizes}, {dtype}: output {number}", output, expected)


def time(run: Callable[[], object]) -> float:
    """Median milliseconds in a graph."""
    return time_in_graph(run, rep=60)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, device="cuda").to(dtype)


def empty(like: Tensor) -> Tensor:
    """A tensor of the same shape and type."""
    return torch.empty_like(like)


if __name__ == "__main__":
    main()
