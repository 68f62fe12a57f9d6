"""What the scripts for kernels share: the comparison with float64, and times on a GPU. Needs torch, not Paddle."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import triton
from torch import Tensor

Run = Callable[[], object]

BF16, FP32 = torch.bfloat16, torch.float32
# Norms of errors, relative to the norms of the values: one rounding to bfloat16 and to float32.
TOLERANCE = {BF16: 2.0**-8, FP32: 1e-5, torch.int32: 0.0}


def seed_inputs(description: str | None) -> None:
    """Parse the command line of a script, and seed torch with its --seed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs")
    torch.manual_seed(parser.parse_args().seed)


def compare(what: str, found: Tensor, expected: Tensor) -> None:
    """Stop if values differ from those in float64."""
    difference = found.double().reshape(expected.shape) - expected.double()
    error = difference.norm() / expected.double().norm().clamp_min(1e-30)
    if not error <= TOLERANCE[found.dtype]:
        raise SystemExit(f"{what}, {found.dtype}: differs by {error:.2e}")


def describe_versions() -> str:
    """The GPU and the versions of torch and Triton."""
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}"


def time_run(run: Run, *, warmup: int = 20, rep: int = 100) -> float:
    """Median milliseconds, with a cold cache. warmup, rep: milliseconds to run before and while measuring."""
    return float(triton.testing.do_bench(run, warmup=warmup, rep=rep, return_mode="median"))


def time_in_graph(run: Run, *, rep: int = 100) -> float:
    """`time_run` in a CUDA graph, so without the host's time, unless `run` waits for the host."""
    try:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            run()
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    except RuntimeError:  # some of torch's operators wait for the host, such as bincount
        torch.cuda.synchronize()
    return time_run(run, rep=rep)


def gemm_peak() -> float:
    """TFLOP/s of a product of large matrices in bfloat16."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=BF16) for _ in range(2))
    return 2 * 8192**3 / time_run(lambda: left @ right) / 1e9


def copy_bandwidth(moved: int = 8 << 30, time: Callable[[Run], float] = time_run) -> float:
    """TB/s of a copy, counting bytes read and written. moved: their number. A large copy is slower in a graph."""
    source = torch.empty(moved // 4, dtype=BF16, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / time(lambda: target.copy_(source)) / 1e9
