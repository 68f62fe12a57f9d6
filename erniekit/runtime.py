"""Setup of device, threads, memory allocation, math library and seeds.

`prepare_environment` must run before Paddle is imported (the command line does so for every command);
`configure` must run once before the first computation.
"""

import ctypes
import os
import random
import resource
import warnings
from contextlib import suppress
from pathlib import Path

from erniekit.errors import ConfigError

# Parameters of glibc's mallopt(3), from its malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

_OPEN_FILES = 65536
_CPUINFO = Path("/proc/cpuinfo")


def prepare_environment() -> None:
    """Apply settings that only work before Paddle is imported or computes. Idempotent."""
    # Importing Paddle looks for a C++ compiler cache and warns; nothing here is compiled.
    warnings.filterwarnings("ignore", message="No ccache found", category=UserWarning)
    # Paddle warns about any other value at import. `configure` sets the number of threads without the variable;
    # callers that import a library that reads it, such as torch, set its threads explicitly.
    os.environ["OMP_NUM_THREADS"] = "1"
    if _is_amd():
        # MKL's default kernels are 2 to 3 times slower on AMD, and much slower after an AdamW step.
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    tune_malloc()
    raise_open_files()


def raise_open_files() -> None:
    """Raise the limit of open files to what the system allows, at most 65,536. Idempotent.

    Each data source has 4 open files, and the usual limit is 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS refuses values that it states as allowed.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def tune_malloc() -> bool:
    """Make glibc keep and reuse large freed blocks; returns whether it succeeded. Idempotent.

    By default, glibc maps every buffer above 32 MiB anew, and the kernel zeroes its pages at every step: a third of the
    time of softmax or attention on a CPU. Blocks of 1 GiB and more are still mapped and returned. Other C libraries
    (macOS, musl) have no such setting: nothing is done.
    """
    try:
        is_glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):
        is_glibc = False
    if not is_glibc:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # glibc before 2.35 rejects thresholds above 32 MiB.
    mapped = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    kept = mallopt(_M_TRIM_THRESHOLD, -1)  # never return the top of the heap
    padded = mallopt(_M_TOP_PAD, 256 << 20)  # grow in large steps; untouched pages cost nothing
    return bool(mapped and kept and padded)


def configure(
    device: str,
    threads: int | None,
    seed: int,
    *,
    kernels: str = "auto",
    attention: str = "auto",
    deterministic: bool = False,
) -> str:
    """Set device, CPU threads, kernels and all seeds; returns "cpu" or "gpu".

    `device`: auto, cpu or gpu. `threads`: CPU threads of operators in the calling thread, None for one per usable core.
    `kernels`, `attention`, `deterministic`: see `erniekit.kernels.choice.choose_forms`. Raises ConfigError for gpu
    without a GPU and for kernels that cannot run.
    """
    prepare_environment()
    import numpy as np
    import paddle

    from erniekit.kernels.choice import choose_forms

    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if device == "gpu" and not has_gpu:
        reason = (
            "no GPU is visible" if paddle.is_compiled_with_cuda() else "the CPU wheel of Paddle is installed"
        )
        raise ConfigError(
            f"parallel.device is gpu, but {reason}; use cpu or auto, or see the README for GPUs"
        )
    chosen = "gpu" if has_gpu and device != "cpu" else "cpu"
    paddle.set_device(chosen)
    paddle.base.core.set_num_threads(threads or usable_cores())
    if chosen == "cpu":
        # Paddle copies strided views with generic loops: a transpose that is read once is 30 to 50 times slower
        # than the transpose kernel, and a training step takes twice as long.
        paddle.set_flags({"FLAGS_use_stride_kernel": False})
    else:
        # Keep float32 products in float32, for example in routers: Paddle uses TF32 by default.
        paddle.base.core.set_cublas_switch(False)
    choose_forms(kernels, chosen, attention=attention, deterministic=deterministic)

    random.seed(seed)
    np.random.seed(seed)
    paddle.seed(seed)
    return chosen


def compute_dtype(dtype: str, device: str) -> str:
    """ "float32" or "bfloat16": `dtype` itself, or for "auto" bfloat16 on a GPU and float32 on a CPU.

    Raises ConfigError for bfloat16 on a CPU.
    """
    if dtype == "auto":
        return "bfloat16" if device == "gpu" else "float32"
    if (dtype, device) == ("bfloat16", "cpu"):
        raise ConfigError(
            "dtype bfloat16 needs a GPU, because Paddle has no bfloat16 CPU kernels; use float32 or auto"
        )
    return dtype


def usable_cores() -> int:
    """CPU cores that this process may run on (its CPU affinity)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_amd() -> bool:
    try:
        with _CPUINFO.open(encoding="ascii", errors="replace") as file:
            return "AuthenticAMD" in file.read(4096)
    except FileNotFoundError:  # not Linux
        return False
