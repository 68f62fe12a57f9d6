"""Check and time the Triton kernel of quantized weights on a GPU. Needs torch, not Paddle.

    python tools/gpu/kernels_quantize.py [--seed 0]

The kernel is compared with float64 over random codes and scales, with whole groups and without; outputs are filled with
NaN before. Then the MLP of all experts with adapters is timed, forward and backward, at the sizes of
ERNIE-4.5-VL-28B-A3B: with frozen weights in bfloat16, and with codes of 8 and 4 bits that both passes dequantize.
"""

from __future__ import annotations

import math

import torch
from grouped_layer import EXPERTS, HIDDEN, RANK, Layer
from timing import BF16, FP32, compare, copy_bandwidth, describe_versions, seed_inputs, time_in_graph
from torch import Tensor

from erniekit.kernels.triton.quantize import dequantize

# As in erniekit/kernels/quantize.py, which needs Paddle.
GROUP_SIZES = {8: 128, 4: 64}


def main() -> None:
    """Check, then print the tables."""
    seed_inputs(__doc__)
    for bits in GROUP_SIZES:
        for shape in ((1, 2), (7, 66), (3, 50, 1154), (5, 512, 2560), (2560, 12288)):
            for dtype in (BF16, FP32):
                check(bits, torch.empty(shape, dtype=dtype, device="cuda"))
    print("the kernel agrees with float64, in bfloat16 and float32")
    copy = copy_bandwidth()
    print(describe_versions())
    print(f"a copy of 4 GiB: {copy:.2f} TB/s\n")
    print("| dequantize | sizes | ms | TB/s | of the copy |\n|---|---|---|---|---|")
    for bits in GROUP_SIZES:
        for shape in ((EXPERTS, 3072, HIDDEN), (EXPERTS, HIDDEN, 512), (HIDDEN, HIDDEN)):
            weight = Quantized(bits, torch.empty(shape, dtype=BF16, device="cuda"))
            ms = time_in_graph(weight.dequantize)
            rate = weight.bytes / ms / 1e9
            sizes = " x ".join(f"{size:,}" for size in shape)
            print(f"| int{bits} | {sizes} | {ms:.3f} | {rate:.2f} | {rate / copy:.0%} |", flush=True)
    print("\n| experts with adapters | width | bfloat16, ms | int8 | int4 |\n|---|---|---|---|---|")
    for tokens in (8192, 2048):
        for width in (1536, 512):
            times = [f"{ms:.2f}" for ms in mlp_times(Layer(tokens, width, "uneven", RANK, BF16))]
            print(f"| {tokens:,} tokens | {width:,} | {' | '.join(times)} |", flush=True)


class Quantized:
    """Random codes and scales of `out`, which `dequantize` writes."""

    def __init__(self, bits: int, out: Tensor) -> None:
        *outer, columns = out.shape
        self.bits, self.out = bits, out
        if bits == 8:
            self.codes = torch.randint(-128, 128, out.shape, dtype=torch.int8, device="cuda")
        else:
            shape = (*outer, columns // 2)
            self.codes = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
        groups = math.ceil(columns / GROUP_SIZES[bits])
        self.scales = torch.randn(*outer, groups, device="cuda", dtype=out.dtype) * 2.0**-bits / HIDDEN**0.5

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.codes.nbytes + self.scales.nbytes + self.out.nbytes

    def dequantize(self) -> None:
        dequantize(self.codes, self.scales, self.out, group=GROUP_SIZES[self.bits])

    def reference(self) -> Tensor:
        """In float64."""
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack([codes % 16, codes // 16], -1).reshape(self.out.shape).int() - 8
        scales = self.scales.double().repeat_interleave(GROUP_SIZES[self.bits], -1)
        return codes * scales[..., : self.out.shape[-1]]


def check(bits: int, out: Tensor) -> None:
    """Compare with float64."""
    weight = Quantized(bits, out.fill_(float("nan")))
    weight.dequantize()
    compare(f"int{bits}, {list(out.shape)}", out, weight.reference())


def mlp_times(layer: Layer) -> list[float]:
    """Milliseconds of forward and backward over weights in bfloat16, 8 and 4 bits."""
    steps = layer.mlps()["frozen, adapters"]
    times = [time_in_graph(lambda: [step() for step in steps])]
    for bits in GROUP_SIZES:
        weights = [Quantized(bits, layer.t[name]).dequantize for name in ("w", "down")]
        quantized = [*weights, *steps, *weights]
        times.append(time_in_graph(lambda quantized=quantized: [step() for step in quantized]))
    return times


if __name__ == "__main__":
    main()
