"""Time, memory, launches and synchronisations of a training step on a GPU; on a CPU only the time."""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
_TOP, _NAME = 60, 200


@dataclass
class Figures:
    """Of one step.

    In ms, compute: forward and backward; update: norm, clipping and AdamW; host: until the host has issued forward and
    backward; busy: of the device. In GiB, state: weights and the optimizer's state, between steps; gradients: after the
    backward pass; peak: of forward and backward; update_peak: of the update. launches: kernels; waits: calls that wait
    for the device; copies: between host and device; top: ms of the device, and number, by name.
    """

    loss: float
    compute: float
    update: float
    host: float
    state: float = 0.0
    gradients: float = 0.0
    peak: float = 0.0
    update_peak: float = 0.0
    launches: int = 0
    busy: float = 0.0
    waits: int = 0
    copies: int = 0
    top: list[tuple[str, float, int]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        return asdict(self)


def measure(
    compute: Callable[[], Any], loss: Callable[[Any], float], update: Callable[[], None], *, steps: int
) -> Figures:
    """compute: forward and backward; loss: of what it returns; update: the rest of a step. Twice to warm up."""
    on_gpu = torch.cuda.is_available()
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    first = loss(compute())
    update()
    loss(compute())
    update()
    synchronize()
    times, memory = [], (0.0,) * 4
    for _ in range(steps):
        state = _allocated(reset=True)[0]
        begin = time.perf_counter()
        output = compute()
        issued = time.perf_counter()
        synchronize()
        computed = time.perf_counter()
        del output
        held, peak = _allocated(reset=True)
        updated = time.perf_counter()
        update()
        synchronize()
        times.append((computed - begin, time.perf_counter() - updated, issued - begin))
        memory = state, held - state, peak, _allocated()[1]
    medians = [statistics.median(column) * 1e3 for column in zip(*times, strict=True)]
    figures = Figures(first, *medians, *memory)
    if on_gpu:
        try:
            _profile(figures, compute, loss, update)
        except RuntimeError as error:
            print(f"no profile: {error}", flush=True)
    return figures


def _allocated(*, reset: bool = False) -> tuple[float, float]:
    """GiB now, and the peak since the last reset; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0, 0.0
    found = torch.cuda.memory_allocated() / 2**30, torch.cuda.max_memory_allocated() / 2**30
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return found


def _profile(
    figures: Figures, compute: Callable[[], Any], loss: Callable[[Any], float], update: Callable[[], None]
) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        loss(compute())
        update()
        torch.cuda.synchronize()
    calls: Counter[str] = Counter()
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in profile.events():
        if getattr(event, "is_user_annotation", False):
            continue
        if event.device_type == torch.autograd.DeviceType.CUDA:
            name = event.name[:_NAME]
            times[name] += event.time_range.elapsed_us()
            counts[name] += 1
        else:
            calls[event.name] += 1
    figures.launches = sum(
        count for name, count in counts.items() if not name.startswith(("Memcpy", "Memset"))
    )
    # One of them is the last line of the block above.
    figures.waits = sum(calls[name] for name in _WAITS) - 1
    figures.copies = sum(
        count for name, count in counts.items() if name.startswith("Memcpy") and "DtoD" not in name
    )
    figures.busy = sum(times.values()) * 1e-3
    figures.top = [(name, spent * 1e-3, counts[name]) for name, spent in times.most_common(_TOP)]


def free() -> None:
    """Return memory before the next case."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
