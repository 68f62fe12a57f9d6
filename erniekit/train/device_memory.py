"""The memory of the device that a process trains on, and of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import paddle

from erniekit.train.planner.gpus import Gpu, known_gpu

_MEMORY = Path("/proc/meminfo")
# Limit and use of a container's memory, in bytes: cgroups of version 2, and of version 1.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def is_cpu() -> bool:
    """Whether this process trains on a CPU."""
    return bool(paddle.get_device() == "cpu")


def device_gpu() -> Gpu | None:
    """The kind of this process's GPU; None for a CPU and for a kind that is not known."""
    return None if is_cpu() else known_gpu(paddle.device.cuda.get_device_name())


def device_memory(processes: int = 1) -> int:
    """The memory of this process's GPU, or `host_memory` on a CPU, in bytes."""
    if not is_cpu():
        device = paddle.get_device()
        return int(paddle.device.cuda.get_device_properties(device).total_memory)
    return host_memory(processes)


def host_memory(processes: int = 1) -> int:
    """The available memory of this machine per process, in bytes, if `processes` share it.

    Includes file caches, which the kernel frees when memory is needed.
    """
    free = [_machine_memory()]
    for limit, used in _CGROUPS:
        values = [_number(Path(limit)), _number(Path(used))]
        if values[0] is not None and values[1] is not None:
            free.append(max(0, values[0] - values[1]))
    return min(free) // processes


def _machine_memory() -> int:
    """The available memory in bytes; the total memory on systems other than Linux."""
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _number(path: Path) -> int | None:
    """The number in a file; None if the file does not exist, or contains "max"."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
