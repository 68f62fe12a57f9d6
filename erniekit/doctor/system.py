"""Versions, devices, disks and limits of the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import paddle
from packaging.requirements import Requirement

from erniekit import __version__
from erniekit.doctor.check import Check, Result, failed, ok, skipped, warning
from erniekit.paths import user_cache_dir
from erniekit.runtime import usable_cores
from erniekit.train.device_memory import device_memory

# Bytes to write for measuring a disk's speed, and MB/s below which it slows down checkpoints and data.
_WRITTEN, _SLOW, _FAST = 64 << 20, 100, 1000
_SPACE = 20 << 30
_SHARED_MEMORY = 1 << 30
_OPEN_FILES = 4096
# CUDA's releases and the oldest driver for Linux that runs them (NVIDIA's table of minor-version compatibility).
_DRIVERS = {11: 450, 12: 525, 13: 580}
_PADDLE = ("paddlepaddle", "paddlepaddle-gpu")


def system_checks(device: str, directory: Path) -> list[Check]:
    """Checks of the machine. directory: where runs are written."""
    return [
        Check("system", "python and erniekit", check_python),
        Check("system", "libraries", check_libraries),
        Check("system", "Paddle", check_paddle),
        Check("system", "Triton", lambda: check_triton(device)),
        Check("system", "GPUs and driver", check_driver),
        Check("system", "CPU and memory", check_memory),
        Check("system", "disk of the working directory", lambda: check_disk(directory)),
        Check("system", "disk of the data cache", lambda: check_disk(user_cache_dir())),
        Check("system", "disk of the Hub's cache", lambda: check_disk(_hub_cache())),
        Check("system", "shared memory", check_shared_memory),
        Check("system", "limits", check_limits),
    ]


def check_python() -> Result:
    """Versions of Python, erniekit and the system."""
    return ok(f"Python {platform.python_version()}, erniekit {__version__}, {platform.platform()}")


def check_libraries() -> Result:
    """Installed versions against the ranges that erniekit was tested with."""
    found, wrong = [], []
    for text in importlib.metadata.requires("erniekit") or ():
        requirement = Requirement(text)
        if requirement.name in _PADDLE or (
            requirement.marker and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        version = _version(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not in {requirement.specifier}")
        found.append(f"{requirement.name} {version}")
    if wrong:
        return failed(f"{'; '.join(wrong)}: pip install --upgrade erniekit")
    return ok(", ".join(found))


def check_paddle() -> Result:
    """The version of Paddle, and what it was built for."""
    version = paddle.version
    built = f"CUDA {version.cuda()}, cuDNN {version.cudnn()}, NCCL {_nccl()}" if _is_cuda() else "CPU"
    text = f"{version.full_version} ({version.commit[:7]}), built for {built}"
    both = [name for name in _PADDLE if _version(name)]
    if len(both) > 1:
        return failed(f"{' and '.join(both)} are both installed: remove both, and install one")
    for needed in map(Requirement, importlib.metadata.requires("erniekit") or ()):
        if needed.name in _PADDLE and not needed.specifier.contains(version.full_version, prereleases=True):
            return failed(f"{text}; erniekit is tested with {needed.specifier}")
    return ok(text)


def check_triton(device: str) -> Result:
    """The version of Triton, which a GPU needs."""
    version = _version("triton")
    if version is not None:
        return ok(version)
    if device == "gpu":
        return failed("not installed: pip install 'erniekit[gpu]', or train with kernels.backend: paddle")
    return skipped("not installed; only GPUs need it")


def check_driver() -> Result:
    """GPUs by name and memory, the driver, and whether Paddle can use them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return failed("nvidia-smi is missing") if _is_cuda() else skipped("no NVIDIA driver is installed")
    lines = [line.strip() for line in printed.stdout.splitlines() if line.strip()]
    if printed.returncode or not lines:
        return failed(f"nvidia-smi fails: {(printed.stderr or printed.stdout).strip().splitlines()[:1]}")
    names = ", ".join(sorted({f"{lines.count(line)} x {line}" for line in lines}))
    if not _is_cuda():
        return warning(f"{names}, but Paddle's CPU build is installed: see the README for GPUs")
    driver = re.search(r"(\d+)\.[\d.]+$", lines[0])
    oldest = _DRIVERS.get(int(str(paddle.version.cuda()).partition(".")[0]))
    if driver and oldest and int(driver[1]) < oldest:
        return failed(f"{names}: CUDA {paddle.version.cuda()} needs a driver of at least {oldest}")
    seen = int(paddle.device.cuda.device_count())
    if seen == 0:
        return failed(f"{names}, but Paddle sees none (CUDA_VISIBLE_DEVICES?)")
    details = []
    for index in range(seen):
        properties = paddle.device.cuda.get_device_properties(index)
        details.append(
            f"{index}: sm_{properties.major}{properties.minor}, {properties.total_memory >> 30} GiB"
        )
    return ok(f"{names}; Paddle sees {seen} ({', '.join(details)})")


def check_memory() -> Result:
    """Cores that this process may use, and free memory."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if paddle.get_device() == "cpu":
        # Counts file caches and the limit of a container as well.
        free = device_memory()
    return ok(f"{usable_cores()} cores, {free / 2**30:.1f} GiB of memory free")


def check_disk(directory: Path) -> Result:
    """Free space, and the speed of writing a file. The nearest directory that exists is used."""
    directory = directory.absolute()
    existing = next(path for path in (directory, *directory.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            block = os.urandom(1 << 20)
            begin = time.monotonic()
            for _ in range(_WRITTEN >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = _WRITTEN / 1e6 / (time.monotonic() - begin)
    except OSError as error:
        return warning(f"{existing} cannot be written: {error.strerror}")
    kind = "fast" if speed >= _FAST else "slow" if speed < _SLOW else "medium"
    text = f"{existing}: {free / 2**30:.0f} GiB free, writes {speed:,.0f} MB/s ({kind})"
    return warning(text) if free < _SPACE or kind == "slow" else ok(text)


def check_shared_memory() -> Result:
    """The size of /dev/shm, through which NCCL and worker processes exchange data."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return warning("there is no /dev/shm")
    usage = shutil.disk_usage(place)
    text = f"/dev/shm: {usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free"
    if usage.free < _SHARED_MEMORY:
        return warning(f"{text}; NCCL on several GPUs may need more: docker run --ipc=host, or --shm-size=8g")
    return ok(text)


def check_limits() -> Result:
    """Open files, processes and locked memory that this user may have."""
    limits = {
        "open files": resource.RLIMIT_NOFILE,
        "processes": resource.RLIMIT_NPROC,
        "locked memory": resource.RLIMIT_MEMLOCK,
    }
    soft = {name: resource.getrlimit(limit)[0] for name, limit in limits.items()}
    text = ", ".join(
        f"{name} {'unlimited' if value == resource.RLIM_INFINITY else f'{value:,}'}"
        for name, value in soft.items()
    )
    files = soft["open files"]
    if files != resource.RLIM_INFINITY and files < _OPEN_FILES:
        return warning(f"{text}; raise the open files: ulimit -n {_OPEN_FILES}")
    return ok(text)


def _is_cuda() -> bool:
    return bool(paddle.is_compiled_with_cuda())


def _nccl() -> str:
    """NCCL's version: Paddle gives 22105 for 2.21.5."""
    number = int(paddle.version.nccl())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number else "none"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
