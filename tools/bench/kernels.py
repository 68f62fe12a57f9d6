"""Compare the kernels chosen for CPU with usual ones, forward and backward, in one run.

    python tools/bench/kernels.py [--tokens 1024] [--repeats 15]

Prints milliseconds (median) and the ratio usual / chosen. The ratio is less noisy than the times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from erniekit import runtime

runtime.prepare_environment()

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.kernels.rms_norm import plain_rms_norm, rms_norm
from erniekit.kernels.rope import rotate_pairs
from erniekit.kernels.swiglu import swiglu
from erniekit.models.attention import DocumentAttention

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 8, 2, 64, 512
Form = Callable[..., Tensor]


def main() -> None:
    """Run every comparison and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1024, help="tokens in the packed sequence")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each form")
    arguments = parser.parse_args()
    runtime.configure("cpu", None, seed=0)
    print(f"{'':34}{'usual ms':>10}{'chosen ms':>11}{'ratio':>8}")
    for name, plain, chosen, inputs in comparisons(arguments.tokens):
        first, second = time_pair(plain, chosen, inputs, arguments.repeats)
        print(f"{name:34}{first:10.2f}{second:11.2f}{first / second:8.2f}")


def comparisons(tokens: int) -> list[tuple[str, Form, Form, list[Tensor]]]:
    """Name, usual form, chosen form and inputs of each comparison."""
    x, weight = _random(tokens, HIDDEN), _random(HIDDEN)
    query, key, value = (_random(tokens, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
    angles = _random(tokens, 1, HEAD_DIM // 2).detach()
    rotation = paddle.stack([paddle.cos(angles), paddle.sin(angles)], -1).squeeze(1)
    rows = [
        ("RMSNorm", lambda x, w: plain_rms_norm(x, w, 1e-5), lambda x, w: rms_norm(x, w, 1e-5), [x, weight]),
        (
            "rotary",
            lambda q, k: sum(_rotate_with_flip(x, angles).sum() for x in (q, k)),
            lambda q, k: sum(x.sum() for x in rotate_pairs(q, k, rotation)),
            [query, key],
        ),
        ("SwiGLU", F.swiglu, swiglu, [_random(tokens, 3 * HIDDEN), _random(tokens, 3 * HIDDEN)]),
    ]
    for length in (tokens, tokens // 4, 32):
        cu_seqlens = np.arange(0, tokens + 1, length, dtype=np.int32)
        attend = DocumentAttention(cu_seqlens, causal=True, heads=HEADS)
        rows.append(
            (
                f"attention, {len(cu_seqlens) - 1} documents of {length}",
                lambda q, k, v, n=length: _loop_over_documents(q, k, v, n),
                lambda q, k, v, a=attend: a(0, q, k, v),
                [query, key, value],
            )
        )
    return rows


def time_pair(plain: Form, chosen: Form, inputs: list[Tensor], repeats: int) -> tuple[float, float]:
    """Median milliseconds of both forms, run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 2):
        for form, record in zip((plain, chosen), times, strict=True):
            start = time.perf_counter()
            form(*inputs).sum().backward()
            if turn >= 2:
                record.append((time.perf_counter() - start) * 1e3)
            for tensor in inputs:
                tensor.clear_gradient()
    return statistics.median(times[0]), statistics.median(times[1])


def _random(*shape: int) -> Tensor:
    tensor = paddle.randn(shape)
    tensor.stop_gradient = False
    return tensor


def _rotate_with_flip(x: Tensor, angles: Tensor) -> Tensor:
    """The usual form: x cos + rotate(x) sin, neighbours swapped by a flip."""
    tokens, heads, width = x.shape
    cosine = paddle.cos(angles).repeat_interleave(2, axis=-1)
    sine = paddle.sin(angles).repeat_interleave(2, axis=-1)
    signed = x.reshape([tokens, heads, width // 2, 2]).flip(-1) * paddle.to_tensor([-1.0, 1.0])
    return x * cosine + signed.reshape([tokens, heads, width]) * sine


def _loop_over_documents(query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
    """Paddle's own attention, one call a document."""
    outputs = []
    for start in range(0, query.shape[0], length):
        q, k, v = (x[start : start + length].unsqueeze(0) for x in (query, key, value))
        outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True)[0])
    return paddle.concat(outputs)


if __name__ == "__main__":
    main()
