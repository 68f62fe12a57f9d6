"""Times on a GPU: copies, products, experts, attention, which show whether it runs at its usual speed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import paddle

from erniekit.doctor.cases import REAL, Sizes, attention_case, expert_mlp_case
from erniekit.doctor.check import Check, Result, ok
from erniekit.kernels.choice import form_of
from erniekit.train.flops import device_peak_flops

_TOKENS = 8192
_REPEATS = 10


def timing_checks() -> list[Check]:
    """The measurements on one GPU."""
    return [
        Check("timings", "copy on the device", time_copy),
        Check("timings", "copy from pinned memory", time_upload),
        Check("timings", "product of matrices in bfloat16", time_product),
        Check("timings", "MLP of experts, forward and backward", time_experts),
        Check("timings", "attention, forward and backward", time_attention),
    ]


def time_copy() -> Result:
    """Bytes read and written per second by a copy of 1 GiB."""
    source = paddle.zeros([1 << 28], "float32")
    seconds = measure(lambda: paddle.assign(source))
    return ok(f"{2 * source.size * 4 / seconds / 1e12:.2f} TB/s")


def time_upload() -> Result:
    """Bytes per second from pinned memory of the host."""
    source = paddle.to_tensor(np.zeros(1 << 26, np.float32), place=paddle.CUDAPinnedPlace())
    seconds = measure(lambda: source.cuda(blocking=False))
    return ok(f"{source.size * 4 / seconds / 1e9:.1f} GB/s")


def time_product() -> Result:
    """TFLOP/s of a product of 8,192 x 8,192 matrices, and its share of the device's peak, if that is known."""
    size = 8192
    one, other = (paddle.randn([size, size]).astype("bfloat16") for _ in range(2))
    rate = 2 * size**3 / measure(lambda: one @ other)
    peak, name = device_peak_flops("bfloat16", None, "gpu")
    share = "" if peak is None else f", {rate / peak:.0%} of the peak of {name}"
    return ok(f"{rate / 1e12:.0f} TFLOP/s{share}")


def time_experts(sizes: Sizes = REAL, dtype: str = "bfloat16") -> Result:
    """Milliseconds for 8,192 tokens with the sizes of VL-28B-A3B's vision experts."""
    seconds = measure(expert_mlp_case(sizes, _TOKENS).step(dtype))
    return ok(f"{seconds * 1e3:.2f} ms for {_TOKENS:,} tokens ({form_of('grouped_gemm')})")


def time_attention(sizes: Sizes = REAL, dtype: str = "bfloat16") -> Result:
    """Milliseconds for one document of 8,192 tokens with the heads of VL-28B-A3B."""
    case = attention_case("decoder", [_TOKENS], sizes.heads, sizes.kv_heads, sizes.head_dim, causal=True)
    return ok(f"{measure(case.step(dtype)) * 1e3:.2f} ms for {_TOKENS:,} tokens ({form_of('attention')})")


def measure(run: Callable[[], object]) -> float:
    """Median seconds of a call including its work on the device, after two calls for warm-up."""
    times = []
    for number in range(_REPEATS + 2):
        _wait()
        begin = time.perf_counter()
        run()
        _wait()
        if number >= 2:
            times.append(time.perf_counter() - begin)
    return float(np.median(times))


def _wait() -> None:
    if paddle.get_device() != "cpu":
        paddle.device.synchronize()
