"""Check and time the Triton kernels of grouped products on a GPU. Needs torch, not Paddle.

    python tools/gpu/kernels_grouped.py [--seed 0]

Every kernel is compared with float64 over random inputs, at 1 to 32,768 tokens with 6 experts each, evenly spread or
not; outputs are filled with NaN before. Then the MLP of all experts is timed, forward and backward, at the sizes of
ERNIE-4.5-VL-28B-A3B: with trained and frozen weights, and with frozen weights and adapters. Times are medians in a CUDA
graph, so without the host's. Shares are of the rate of a product of 8,192 x 8,192 matrices, and of the bandwidth of a
copy of 4 GiB.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from grouped_layer import HIDDEN, RANK, SCALING, Layer
from timing import (
    BF16,
    FP32,
    Run,
    compare,
    copy_bandwidth,
    describe_versions,
    gemm_peak,
    seed_inputs,
    time_in_graph,
)
from torch import Tensor

from erniekit.kernels.triton.grouped_gemm import grouped_gemm, grouped_gemm_dw, grouped_gemm_dx
from erniekit.kernels.triton.grouped_swiglu import grouped_down_dx, grouped_gate_up

Formula = Callable[..., object]


class Kernel(NamedTuple):
    """One launch.

    run: writes `outputs`, tensors of `Layer.out`; inputs: tensors of `Layer.t`; formula: returns the outputs of one
    expert from its rows and matrices of `inputs`; products: the FLOPs, in products of gate, up or down.
    """

    name: str
    run: Run
    outputs: list[str]
    inputs: list[str]
    products: float
    formula: Formula

    def moved_bytes(self, layer: Layer) -> int:
        """Bytes of each input and output once."""
        tensors = [*(layer.t[name] for name in self.inputs), *(layer.out[name] for name in self.outputs)]
        return sum(tensor.nbytes for tensor in tensors)


def main() -> None:
    """Check all sizes, then print the tables."""
    seed_inputs(__doc__)
    for tokens, width, spread, rank in (
        (1, 512, "even", 32),
        (1, 3584, "even", 5),
        (2048, 1536, "skewed", 32),
        (2048, 3584, "half empty", 5),
        (8192, 512, "one expert", 32),
        (8192, 1536, "even", 32),
        (32768, 512, "skewed", 32),
        (32768, 1536, "half empty", 32),
    ):
        check(Layer(tokens, width, spread, rank, BF16))
    for spread in ("even", "half empty"):
        check(Layer(100, 136, spread, 5, FP32, hidden=264))
    print("all kernels agree with float64, in bfloat16 and float32")
    print_times()


def check(layer: Layer) -> None:
    """Compare the outputs of every kernel with float64."""
    for kernel in all_kernels(layer):
        outputs = [layer.out[name].fill_(float("nan")) for name in kernel.outputs]
        kernel.run()
        sizes = f"{layer.tokens} tokens, width {layer.width}, {layer.spread}, rank {layer.rank}"
        for output, expected in zip(outputs, layer.by_expert(kernel.formula, kernel.inputs), strict=True):
            compare(f"{kernel.name}, {sizes}", output, expected)


def print_times() -> None:
    """Print the tables of the MLPs and of single kernels, and the host's time."""
    peak, copy = gemm_peak(), copy_bandwidth()
    print(describe_versions())
    print(f"peak {peak:.0f} TFLOP/s, a copy of 4 GiB {copy:.2f} TB/s")
    print(
        "\n| expert MLP | tokens | width | ms | of the peak | grouped_mm, ms | dense, ms |\n"
        + "|---" * 7
        + "|"
    )
    layers = [Layer(tokens, width, "uneven", RANK, BF16) for tokens in (8192, 2048) for width in (1536, 512)]
    for layer in layers:
        for name, steps in layer.mlps().items():
            ms = time_in_graph(lambda steps=steps: [step() for step in steps])
            work = layer.flops(3 if name == "trained" else 2)
            others = " | ".join(f"{time_in_graph(run):.2f}" for run in layer.composed(name))
            sizes = f"{layer.tokens:,} | {layer.width:,}"
            print(f"| {name} | {sizes} | {ms:.2f} | {work / ms / 1e9 / peak:.0%} | {others} |", flush=True)
    print("\n| kernel | width | ms | of the peak | TB/s | of the copy |\n" + "|---" * 6 + "|")
    for layer in layers[:2]:
        for kernel in all_kernels(layer):
            ms = time_in_graph(kernel.run)
            share = layer.flops(kernel.products / 3) / ms / 1e9 / peak
            rate = kernel.moved_bytes(layer) / ms / 1e9
            print(
                f"| {kernel.name} | {layer.width:,} | {ms:.3f} | {share:.0%} | {rate:.2f} | {rate / copy:.0%} |"
            )
    steps = layers[0].mlps()["frozen, adapters"]
    start = clock.perf_counter()
    for _ in range(20):
        for step in steps:
            step()
    host = (clock.perf_counter() - start) / 20 / len(steps)
    torch.cuda.synchronize()
    print(f"\nThe host takes {host * 1e6:.0f} microseconds for a launch; {len(steps)} launches with adapters")


def all_kernels(layer: Layer) -> list[Kernel]:
    """Every launch of forward and backward, over random inputs."""
    return [
        *mlp_kernels(layer),
        *row_gradient_kernels(layer),
        *weight_gradient_kernels(layer),
        *adapter_kernels(layer),
    ]


def mlp_kernels(layer: Layer) -> list[Kernel]:
    """The forward pass."""
    t, out, off, width, rank = layer.t, layer.out, layer.offsets, layer.width, layer.rank
    x, a, low1, low2 = t["x"], t["a"], (t["u1"], t["b1"]), (t["u2"], t["b2"])

    def low(u: Tensor, b: Tensor) -> Tensor:
        return torch.cat([u[:, :rank] @ b[:width].T, u[:, rank:] @ b[width:].T], 1)

    return [
        Kernel(
            "gate_up and SwiGLU",
            lambda: grouped_gate_up(x, t["w"], off, out["h"], out["a"]),
            ["h", "a"],
            ["x", "w"],
            2,
            lambda x, w: with_swiglu(x @ w.T),
        ),
        Kernel(
            "the same, adapters",
            lambda: grouped_gate_up(x, t["w"], off, out["h"], out["a"], low1),
            ["h", "a"],
            ["x", "w", "u1", "b1"],
            2,
            lambda x, w, u, b: with_swiglu(x @ w.T + low(u, b)),
        ),
        Kernel(
            "down",
            lambda: grouped_gemm(a, t["down"], off, out["y"]),
            ["y"],
            ["a", "down"],
            1,
            lambda a, w: a @ w.T,
        ),
        Kernel(
            "the same, adapters",
            lambda: grouped_gemm(a, t["down"], off, out["y"], low2),
            ["y"],
            ["a", "down", "u2", "b2"],
            1,
            lambda a, w, u, b: a @ w.T + u @ b.T,
        ),
    ]


def row_gradient_kernels(layer: Layer) -> list[Kernel]:
    """The gradients of rows of tokens."""
    t, out, off = layer.t, layer.out, layer.offsets
    h, dy, dh, grad1, grad2 = t["h"], t["dy"], t["dh"], (t["v1"], t["a1"]), (t["v2"], t["a2"])
    return [
        Kernel(
            "down's gradient of rows, and SwiGLU's",
            lambda: grouped_down_dx(dy, t["down"], h, off, out["dh"], out["a"]),
            ["dh", "a"],
            ["dy", "down", "h"],
            1,
            lambda dy, w, h: swiglu_gradient(dy @ w, h),
        ),
        Kernel(
            "the same, adapters",
            lambda: grouped_down_dx(dy, t["down"], h, off, out["dh"], out["a"], grad2),
            ["dh", "a"],
            ["dy", "down", "h", "v2", "a2"],
            1,
            lambda dy, w, h, v, a: swiglu_gradient(dy @ w + v @ a, h),
        ),
        Kernel(
            "gate_up's gradient of rows",
            lambda: grouped_gemm_dx(dh, t["w"], off, out["x"]),
            ["x"],
            ["dh", "w"],
            2,
            lambda dh, w: dh @ w,
        ),
        Kernel(
            "the same, adapters",
            lambda: grouped_gemm_dx(dh, t["w"], off, out["x"], grad1),
            ["x"],
            ["dh", "w", "v1", "a1"],
            2,
            lambda dh, w, v, a: dh @ w + v @ a,
        ),
    ]


def weight_gradient_kernels(layer: Layer) -> list[Kernel]:
    """The gradients of weights."""
    t, out, off = layer.t, layer.out, layer.offsets
    return [
        Kernel(
            "gate_up's gradient",
            lambda: grouped_gemm_dw(t["dh"], t["x"], off, out["w"]),
            ["w"],
            ["dh", "x"],
            2,
            lambda dh, x: dh.T @ x,
        ),
        Kernel(
            "down's gradient",
            lambda: grouped_gemm_dw(t["dy"], t["a"], off, out["down"]),
            ["down"],
            ["dy", "a"],
            1,
            lambda dy, a: dy.T @ a,
        ),
    ]


def adapter_kernels(layer: Layer) -> list[Kernel]:
    """The products of low rank, and the gradients of adapters."""
    t, out, off, width, rank = layer.t, layer.out, layer.offsets, layer.width, layer.rank
    x, dh = t["x"], t["dh"]
    small, half = 2 * rank / width, rank / HIDDEN * 2

    def parts(dh: Tensor, b: Tensor) -> Tensor:
        return torch.cat([dh[:, :width] @ b[:width], dh[:, width:] @ b[width:]], 1)

    def b1_gradient(dh: Tensor, u: Tensor) -> Tensor:
        return torch.cat([dh[:, :width].T @ u[:, :rank], dh[:, width:].T @ u[:, rank:]])

    return [
        Kernel(
            "x A^T",
            lambda: grouped_gemm(x, t["a1"], off, out["u1"], scale=SCALING),
            ["u1"],
            ["x", "a1"],
            small,
            lambda x, a: SCALING * (x @ a.T),
        ),
        Kernel(
            "dh B",
            lambda: grouped_gemm_dx(dh, t["b1"], off, out["v1"], scale=SCALING),
            ["v1"],
            ["dh", "b1"],
            half,
            lambda dh, b: SCALING * parts(dh, b),
        ),
        Kernel(
            "A's gradient",
            lambda: grouped_gemm_dw(t["v1"], x, off, out["a1"]),
            ["a1"],
            ["v1", "x"],
            small,
            lambda v, x: v.T @ x,
        ),
        Kernel(
            "B's gradient",
            lambda: grouped_gemm_dw(dh, t["u1"], off, out["b1"]),
            ["b1"],
            ["dh", "u1"],
            half,
            b1_gradient,
        ),
    ]


def with_swiglu(h: Tensor) -> tuple[Tensor, Tensor]:
    """h [n, 2F] (gates first), and silu(gate) * up [n, F]."""
    gate, up = h.chunk(2, 1)
    return h, F.silu(gate) * up


def swiglu_gradient(da: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of h [n, 2F] for that of silu(gate) * up, and silu(gate) * up."""
    h = h.requires_grad_()
    a = with_swiglu(h)[1]
    return torch.autograd.grad(a, h, da)[0], a.detach()


if __name__ == "__main__":
    main()
