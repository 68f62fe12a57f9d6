"""Time and memory of the plain form of attention, beside a composed softmax that keeps all weights.

    python tools/bench/attention.py [--tokens 8192] [--heads 8] [--repeats 3]

Compares one long document, documents of 256 tokens, and pairs that share half of a document, forward and backward, in
turns. Prints the shortest time in milliseconds, and the most memory in MiB that Paddle holds besides the inputs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from erniekit import runtime

runtime.prepare_environment()

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.kernels import attention
from erniekit.models import attention as documents
from erniekit.models import branches as pairs
from erniekit.models.attention import Attend, DocumentAttention
from erniekit.models.branches import BranchAttention

HEAD_DIM, GROUP, SHORT, CHUNK = 64, 4, 256, 256
Batched = Callable[..., Tensor]


def main() -> None:
    """Run every comparison and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8192, help="tokens in the packed sequence")
    parser.add_argument("--heads", type=int, default=8, help="query heads; a fourth as many of keys")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each form")
    arguments = parser.parse_args()
    runtime.configure("cpu", None, seed=0)
    heads = (arguments.heads, arguments.heads // GROUP, arguments.heads // GROUP)
    inputs = [paddle.randn([arguments.tokens, count, HEAD_DIM]) for count in heads]
    for tensor in inputs:
        tensor.stop_gradient = False
    print(f"{'':24}{'composed ms':>12}{'plain ms':>10}{'ratio':>7}{'composed MiB':>14}{'plain MiB':>11}")
    for name, attend in rows(arguments.tokens, arguments.heads).items():
        forms = (composed, attention.batched_attention)
        found = [[measure(form, attend, inputs) for form in forms] for _ in range(arguments.repeats + 1)]
        # The first turn warms up.
        times = [min(turn[side][0] for turn in found[1:]) for side in range(2)]
        memory = [found[-1][side][1] for side in range(2)]
        print(
            f"{name:24}{times[0]:12.0f}{times[1]:10.0f}{times[1] / times[0]:7.2f}{memory[0]:14.0f}{memory[1]:11.0f}"
        )


def rows(tokens: int, heads: int) -> dict[str, Attend]:
    """Attention over packed sequences of different documents."""
    long = np.array([0, tokens], np.int32)
    short = np.arange(0, tokens + 1, SHORT, dtype=np.int32)
    shared = np.arange(0, tokens + 1, 4 * SHORT, dtype=np.int32)
    branches = np.stack([shared[:-1] + 2 * SHORT, shared[:-1] + 3 * SHORT], 1)
    return {
        f"1 x {tokens}": DocumentAttention(long, causal=True, heads=heads),
        f"{len(short) - 1} x {SHORT}": DocumentAttention(short, causal=True, heads=heads),
        f"{len(shared) - 1} pairs of {4 * SHORT}": BranchAttention(shared, branches, heads),
    }


def measure(form: Batched, attend: Attend, inputs: list[Tensor]) -> tuple[float, float]:
    """Milliseconds and MiB of a forward and a backward pass with a form of `batched_attention`."""
    memory = paddle.base.core
    for tensor in inputs:
        tensor.clear_gradient()
    before = memory.host_memory_stat_current_value("Allocated", 0)
    memory.host_memory_stat_reset_peak_value("Allocated", 0)
    kept = documents.batched_attention, pairs.batched_attention
    documents.batched_attention = pairs.batched_attention = form
    start = time.perf_counter()
    attend(0, *inputs).sum().backward()
    elapsed = (time.perf_counter() - start) * 1e3
    documents.batched_attention, pairs.batched_attention = kept
    return elapsed, (memory.host_memory_stat_peak_value("Allocated", 0) - before) / 2**20


def composed(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """`batched_attention` of operators with autograd, which keeps the weights of every chunk of queries."""
    count, length, heads, width = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    q = (query * width**-0.5).reshape([count, length, kv_heads, group, width]).transpose([0, 2, 3, 1, 4])
    k, v = key.transpose([0, 2, 1, 3]), value.transpose([0, 2, 1, 3])
    outputs = []
    for start in range(0, length, CHUNK):
        stop = min(start + CHUNK, length)
        seen = key.shape[1] - length + stop
        chunk = q[:, :, :, start:stop].reshape([count, kv_heads, group * (stop - start), width])
        scores = paddle.matmul(chunk, k[:, :, :seen], transpose_y=True)
        mask = paddle.triu(paddle.full([stop - start, seen], -1e30), seen - (stop - start) + 1)
        scores = scores.reshape([count, kv_heads, group, stop - start, seen]) + mask
        weights = F.softmax(scores, -1).reshape([count, kv_heads, group * (stop - start), seen])
        output = paddle.matmul(weights, v[:, :, :seen])
        outputs.append(output.reshape([count, kv_heads, group, stop - start, width]))
    return paddle.concat(outputs, 3).transpose([0, 3, 1, 2, 4]).reshape(query.shape)


if __name__ == "__main__":
    main()
