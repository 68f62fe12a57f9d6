"""A copy of tensors in host memory, made while training computes the next gradients."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import paddle
from paddle import Tensor

from erniekit.checkpoint.weights import array_of
from erniekit.parallel.tensor_stream import AwaitedTensor, CompleteTensor, view

_THREADS = 4
_POLL_SECONDS = 0.002
# Neighbours in memory are copied together up to so many bytes: a model has tens of thousands of tensors, most of them
# small, and each copy takes the host's time.
_RUN_BYTES = 128 << 20


class HostCopy(ABC):
    """Copies tensors to host memory that stays allocated: the system takes longer to provide memory than to copy to it.

    A copy is valid until the next one starts. memory_share: the share of the machine's free memory that it may take.
    """

    memory_share: float

    def __init__(self) -> None:
        self._awaited: dict[str, _AwaitedCopy] = {}

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of host memory that the next copy uses again."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until everything is copied that has come. Live tensors must not change before."""

    @property
    def awaited(self) -> Set[str]:
        """The names of the tensors that have not come."""
        return self._awaited.keys()

    def start(self, tensors: Iterable[CompleteTensor | AwaitedTensor]) -> Iterator[np.ndarray]:
        """Begin to copy; returns the values in order, each of them as soon as it is copied.

        The iterator may be read by another thread. A tensor that is not live is copied before the next one is taken, so
        that one of them is in memory at a time. `supply` brings those that are awaited.
        """
        self._prepare()
        self._awaited = {}
        places: list[_Place] = []
        copies: list[_Copy | None] = []
        live: list[tuple[int, CompleteTensor]] = []
        for number, tensor in enumerate(tensors):
            if isinstance(tensor, AwaitedTensor):
                awaited = _AwaitedCopy(Future())
                self._awaited[tensor.spec.name] = awaited
                places.append(_Place(len(copies), 0, tensor.spec.shape))
                copies.append(awaited)
            elif tensor.is_live:
                live.append((number, tensor))
                places.append(_Place(-1, 0, tensor.spec.shape))
            else:
                places.append(_Place(len(copies), 0, tensor.spec.shape))
                copies.append(self._begin(tensor.values, 0, tensor.spec.size, is_live=False))
        for run in _runs(live):
            for number, tensor in run:
                places[number] = _Place(len(copies), tensor.start - run[0][1].start, tensor.spec.shape)
            (_, first), (_, last) = run[0], run[-1]
            copies.append(self._begin(first.values, first.start, last.start + last.spec.size, is_live=True))
        return _arrays(places, copies)

    def supply(self, tensors: Iterable[CompleteTensor]) -> None:
        """Begin to copy tensors that are awaited, and let go of those that were supplied before: call it once more at
        the end.

        They are copied beside the live ones, not after them: a layer's memory is wanted for the layers after it.
        """
        self._let_go()
        for tensor in tensors:
            awaited = self._awaited.pop(tensor.spec.name, None)
            if awaited is not None:
                copy = self._begin_supplied(tensor.values, tensor.start, tensor.start + tensor.spec.size)
                awaited.copy.set_result(copy)

    def give_up(self, error: Exception) -> None:
        """Raise an error where the values of a tensor are read that has not come. Another thread may call this."""
        for name in list(self._awaited):
            awaited = self._awaited.pop(name, None)
            if awaited is not None:
                awaited.copy.set_exception(error)

    @abstractmethod
    def _prepare(self) -> None:
        """Before the first copy."""

    @abstractmethod
    def _begin(self, values: Tensor, start: int, stop: int, *, is_live: bool) -> _Copy:
        """Begin to copy elements of a tensor, and wait for them unless it is live."""

    @abstractmethod
    def _begin_supplied(self, values: Tensor, start: int, stop: int) -> _Copy:
        """Begin to copy elements of a tensor that is kept until `_let_go`."""

    @abstractmethod
    def _let_go(self) -> None:
        """Let go of the tensors supplied before, once they are copied."""


def host_copy() -> HostCopy:
    """A copy from the device of this process."""
    return CpuCopy() if paddle.get_device() == "cpu" else GpuCopy()


class _Place(NamedTuple):
    """Where the values of a tensor are: in which copy, and from which element on."""

    copy: int
    start: int
    shape: tuple[int, ...]


class _Copy(Protocol):
    def array(self) -> np.ndarray:
        """The elements, 1-D, once they are copied."""


class _AwaitedCopy(NamedTuple):
    copy: Future[_Copy]

    def array(self) -> np.ndarray:
        return self.copy.result().array()


def _runs(tensors: Sequence[tuple[int, CompleteTensor]]) -> Iterator[list[tuple[int, CompleteTensor]]]:
    """Numbered tensors in groups that lie side by side in the memory of one tensor."""
    by_values: dict[int, list[tuple[int, CompleteTensor]]] = {}
    for item in tensors:
        by_values.setdefault(id(item[1].values), []).append(item)
    for group in by_values.values():
        run: list[tuple[int, CompleteTensor]] = []
        stop = 0
        for number, tensor in sorted(group, key=lambda item: item[1].start):
            nbytes = (stop - run[0][1].start) * tensor.values.element_size() if run else 0
            if run and (tensor.start != stop or nbytes >= _RUN_BYTES):
                yield run
                run = []
            run.append((number, tensor))
            stop = tensor.start + tensor.spec.size
        yield run


def _arrays(places: Sequence[_Place], copies: list[_Copy | None]) -> Iterator[np.ndarray]:
    """The values in order. A copy is dropped when its last tensor is read."""
    left = Counter(place.copy for place in places)
    arrays: dict[int, np.ndarray] = {}
    for number, start, shape in places:
        copy = copies[number]
        if copy is not None:
            arrays[number], copies[number] = copy.array(), None
        size = int(np.prod(shape, dtype=np.int64))
        left[number] -= 1
        array = arrays[number] if left[number] else arrays.pop(number)
        yield array[start : start + size].reshape(shape)


class CpuCopy(HostCopy):
    """Copies by threads."""

    memory_share = 0.8

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[np.ndarray] = []
        self._running: list[_ThreadCopy] = []
        self._supplied: list[_ThreadCopy] = []
        self._threads = ThreadPoolExecutor(_THREADS, "host copy")
        self._supplied_threads = ThreadPoolExecutor(_THREADS, "host copy of a layer")

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)

    def wait(self) -> None:
        for copy in self._running:
            copy.future.result()

    def _prepare(self) -> None:
        self._running, self._supplied = [], []

    def _begin(self, values: Tensor, start: int, stop: int, *, is_live: bool) -> _Copy:
        copy = self._submit(self._threads, values, start, stop)
        if not is_live:
            copy.future.result()
        return copy

    def _begin_supplied(self, values: Tensor, start: int, stop: int) -> _Copy:
        self._supplied.append(self._submit(self._supplied_threads, values, start, stop))
        return self._supplied[-1]

    def _let_go(self) -> None:
        # A thread keeps the values until it has copied them.
        for copy in self._supplied:
            copy.future.result()
        self._supplied = []

    def _submit(self, threads: ThreadPoolExecutor, values: Tensor, start: int, stop: int) -> _ThreadCopy:
        array = array_of(view(values, start, [stop - start]))
        target = self._buffer(len(self._running), array)
        self._running.append(_ThreadCopy(target, threads.submit(np.copyto, target, array)))
        return self._running[-1]

    def _buffer(self, number: int, array: np.ndarray) -> np.ndarray:
        if number == len(self._buffers):
            self._buffers.append(np.empty(array.nbytes, np.uint8))
        elif self._buffers[number].nbytes != array.nbytes:
            self._buffers[number] = np.empty(array.nbytes, np.uint8)
        return self._buffers[number].view(array.dtype)


class _ThreadCopy(NamedTuple):
    target: np.ndarray
    future: Future[None]

    def array(self) -> np.ndarray:
        self.future.result()
        return self.target


class GpuCopy(HostCopy):
    """Copies to pinned memory on a separate stream, in parallel with training. Paddle caches pinned memory.

    Run on a GPU with torch in place of Paddle (tools/gpu/rehearsal/saves.py). That Paddle does the same was read in its
    sources.
    """

    # Paddle pins at most half of the machine's memory (FLAGS_fraction_of_cuda_pinned_memory_to_use).
    memory_share = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._stream, self._supplied_stream = paddle.device.Stream(), paddle.device.Stream()
        # Memory that is copied must not be used for anything else.
        self._sources: list[Tensor] = []
        self._supplied: list[Tensor] = []
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def wait(self) -> None:
        _wait_for(self._stream)
        _wait_for(self._supplied_stream)
        self._sources, self._supplied = [], []

    def _prepare(self) -> None:
        self._nbytes, self._sources, self._supplied = 0, [], []
        # What the kernels in flight still write is copied after them.
        self._stream.wait_stream(paddle.device.current_stream())

    def _begin(self, values: Tensor, start: int, stop: int, *, is_live: bool) -> _Copy:
        source = view(values, start, [stop - start])
        if not is_live:
            # It was gathered after `_prepare`.
            self._stream.wait_stream(paddle.device.current_stream())
        copy = self._copy(source, self._stream)
        if is_live:
            self._sources.append(source)
        else:
            _wait_for(copy.event)
        return copy

    def _begin_supplied(self, values: Tensor, start: int, stop: int) -> _Copy:
        source = view(values, start, [stop - start])
        if not self._supplied:
            self._supplied_stream.wait_stream(paddle.device.current_stream())
        self._supplied.append(source)
        return self._copy(source, self._supplied_stream)

    def _let_go(self) -> None:
        # Kernels that use the memory again run after the copies; the host does not wait.
        paddle.device.current_stream().wait_stream(self._supplied_stream)
        self._supplied = []

    def _copy(self, source: Tensor, stream: paddle.device.Stream) -> _StreamCopy:
        with paddle.device.stream_guard(stream):
            pinned = source.pin_memory(blocking=False)
        self._nbytes += source.size * source.element_size()
        return _StreamCopy(pinned, stream.record_event())


class _StreamCopy(NamedTuple):
    pinned: Tensor
    event: paddle.device.Event

    def array(self) -> np.ndarray:
        _wait_for(self.event)
        return self.pinned.numpy()


def _wait_for(work: paddle.device.Stream | paddle.device.Event) -> None:
    """Wait for the device, and let other threads run: Paddle's own waiting holds Python's lock."""
    while not work.query():
        time.sleep(_POLL_SECONDS)
