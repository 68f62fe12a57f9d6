"""A copy of tensors in host memory, made while training computes the next gradients."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import paddle
from paddle import Tensor

from erniekit.checkpoint.weights import array_of
from erniekit.parallel.tensor_stream import CompleteTensor

_THREADS = 4
_POLL_SECONDS = 0.002


class HostCopy(Protocol):
    """Copies tensors to host memory that stays allocated: the system takes longer to provide memory than to copy to it.

    A copy is valid until the next one starts. memory_share: the share of the machine's free memory that it may take.
    """

    memory_share: float

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that the next copy uses again."""

    def start(self, tensors: Iterable[CompleteTensor]) -> Iterator[np.ndarray]:
        """Begin to copy; returns the values in order, each of them as soon as it is copied.

        The iterator may be read by another thread. A tensor that is not live is copied before the next one is taken, so
        that one of them is in memory at a time.
        """

    def wait(self) -> None:
        """Wait until everything is copied. Live tensors must not change before."""


def host_copy() -> HostCopy:
    """A copy from the device of this process."""
    return CpuCopy() if paddle.get_device() == "cpu" else GpuCopy()


class CpuCopy:
    """Copies by threads."""

    memory_share = 0.8

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []
        self._running: list[Future[None]] = []

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)

    def start(self, tensors: Iterable[CompleteTensor]) -> Iterator[np.ndarray]:
        copies: list[np.ndarray] = []
        self._running = []
        # The threads end when the last copy is made.
        pool = ThreadPoolExecutor(_THREADS, "host copy")
        for number, tensor in enumerate(tensors):
            array = array_of(tensor.values)
            copies.append(self._buffer(number, array))
            self._running.append(pool.submit(np.copyto, copies[-1], array))
            if not tensor.is_live:
                self._running[-1].result()
        pool.shutdown(wait=False)
        return _as_copied(list(self._running), copies)

    def wait(self) -> None:
        for copy in self._running:
            copy.result()
        self._running = []

    def _buffer(self, number: int, array: np.ndarray) -> np.ndarray:
        if number == len(self._buffers):
            self._buffers.append(np.empty(array.nbytes, np.uint8))
        elif self._buffers[number].nbytes != array.nbytes:
            self._buffers[number] = np.empty(array.nbytes, np.uint8)
        return self._buffers[number].view(array.dtype).reshape(array.shape)


def _as_copied(running: list[Future[None]], copies: list[np.ndarray]) -> Iterator[np.ndarray]:
    for future, copy in zip(running, copies, strict=True):
        future.result()
        yield copy


class GpuCopy:
    """Copies into pinned memory on a stream of its own, beside the kernels of training. Paddle keeps pinned memory.

    Run on a GPU with torch in place of Paddle (tools/gpu/rehearsal/saves.py). That Paddle does the same was read in its
    sources.
    """

    # Paddle pins at most half of the machine's memory (FLAGS_fraction_of_cuda_pinned_memory_to_use).
    memory_share = 0.5

    def __init__(self) -> None:
        self._stream = paddle.device.Stream()
        self._sources: list[Tensor] = []
        self.nbytes = 0

    def start(self, tensors: Iterable[CompleteTensor]) -> Iterator[np.ndarray]:
        pinned: deque[Tensor] = deque()
        self._sources = []
        # What the kernels in flight still write is copied after them.
        self._stream.wait_stream(paddle.device.current_stream())
        for tensor in tensors:
            if not tensor.is_live:
                self._stream.wait_stream(paddle.device.current_stream())
            with paddle.device.stream_guard(self._stream):
                pinned.append(tensor.values.pin_memory(blocking=False))
            if tensor.is_live:
                self._sources.append(tensor.values)
            else:
                _wait_for(self._stream)
        self.nbytes = sum(copy.size * copy.element_size() for copy in pinned)
        return _when_reached(self._stream.record_event(), pinned)

    def wait(self) -> None:
        _wait_for(self._stream)
        self._sources = []


def _when_reached(event: paddle.device.Event, pinned: deque[Tensor]) -> Iterator[np.ndarray]:
    _wait_for(event)
    while pinned:
        yield pinned.popleft().numpy()


def _wait_for(work: paddle.device.Stream | paddle.device.Event) -> None:
    """Wait for the device, and let other threads run: Paddle's own waiting holds Python's lock."""
    while not work.query():
        time.sleep(_POLL_SECONDS)
