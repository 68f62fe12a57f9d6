"""Devices, element types, flags and random numbers."""

from __future__ import annotations

from typing import Any

import torch

DTYPES = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}

# Flags that change nothing here: torch keeps views on every device.
_WITHOUT_EFFECT = ("FLAGS_use_stride_kernel",)


class Place:
    """Where a tensor is."""

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self.device, self.pinned = device, pinned

    def is_gpu_place(self) -> bool:
        return self.device.type == "cuda" or (_Current.pretends and not self.pinned)

    def is_cpu_place(self) -> bool:
        return self.device.type == "cpu" and not self.pinned and not _Current.pretends

    def __repr__(self) -> str:
        return "Place(gpu_pinned)" if self.pinned else f"Place({self.device})"


class _Current:
    device = torch.device("cpu")
    pretends = False


def pretend_gpu() -> None:
    """Take the CPU for a GPU: what is written for GPUs runs there, slowly, to try it out."""
    _Current.pretends = True


def current_device() -> torch.device:
    """Where tensors are made."""
    return _Current.device


def set_device(device: str) -> Place:
    kind, _, number = device.partition(":")
    if kind == "gpu" and not _Current.pretends:
        _Current.device = torch.device("cuda", int(number or 0))
        torch.cuda.set_device(_Current.device)
    elif kind == "gpu" or device == "cpu":
        _Current.device = torch.device("cpu")
    else:
        raise ValueError(f"the adapter has no device {device}")
    return Place(_Current.device)


def get_device() -> str:
    return "gpu:0" if _Current.pretends or _Current.device.type == "cuda" else "cpu"


def cpu_place() -> Place:
    return Place(torch.device("cpu"))


def pinned_place() -> Place:
    return Place(torch.device("cpu"), pinned=True)


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype:
    """Paddle's name of an element type, or the type itself; float32 for None."""
    if dtype is None:
        return torch.float32
    return dtype if isinstance(dtype, torch.dtype) else DTYPES[dtype]


def is_compiled_with_cuda() -> bool:
    return _Current.pretends or torch.cuda.is_available()


def device_count() -> int:
    return 1 if _Current.pretends else torch.cuda.device_count()


def pin(raw: torch.Tensor) -> torch.Tensor:
    return raw if _Current.pretends else raw.pin_memory()


def gpu_number(number: int | None) -> torch.device:
    """A GPU, by default the current one."""
    if _Current.pretends:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device() if number is None else number)


def set_cublas_switch(allow_tf32: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32


def set_flags(flags: dict[str, Any]) -> None:
    unknown = sorted(set(flags) - set(_WITHOUT_EFFECT))
    if unknown:
        raise AttributeError(f"the adapter has no flag {unknown[0]}")


def enable_compat(*, scope: set[str], silent: bool = False) -> None:
    if scope != {"triton"}:
        raise AttributeError(f"the adapter has no enable_compat for {scope}")


class _RawStream:
    def __init__(self, device: int) -> None:
        self.cuda_stream = torch.cuda.current_stream(device).cuda_stream


def get_current_stream(device: int) -> _RawStream:
    return _RawStream(device)


class Stream:
    """A stream that does not wait for others. On a CPU that passes for a GPU, everything is done at once."""

    def __init__(self, raw: torch.cuda.Stream | None = None) -> None:
        self.raw = raw if raw is not None or _Current.pretends else torch.cuda.Stream()

    def wait_stream(self, other: Stream) -> None:
        if self.raw is not None:
            self.raw.wait_stream(other.raw)

    def record_event(self) -> Event:
        return Event(None if self.raw is None else self.raw.record_event())

    def query(self) -> bool:
        return self.raw is None or self.raw.query()


class Event:
    """A place in the work of a stream."""

    def __init__(self, raw: torch.cuda.Event | None = None) -> None:
        self.raw = raw

    def query(self) -> bool:
        return self.raw is None or self.raw.query()


def current_stream() -> Stream:
    return Stream(None if _Current.pretends else torch.cuda.current_stream())


def stream_guard(stream: Stream) -> torch.cuda.StreamContext:
    return torch.cuda.stream(stream.raw)


STREAMS = (Stream, Event, current_stream, stream_guard)


def seed(value: int) -> None:
    torch.manual_seed(value)


def get_rng_state() -> list[torch.Tensor]:
    on_gpu = _Current.device.type == "cuda"
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if on_gpu else [])]


def set_rng_state(state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
