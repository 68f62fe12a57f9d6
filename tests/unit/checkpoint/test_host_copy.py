"""Copies that training does not change, in memory that is used again."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.checkpoint import host_copy as module
from erniekit.checkpoint.host_copy import host_copy
from erniekit.checkpoint.weights import array_of
from erniekit.errors import CheckpointError
from erniekit.models.specs import TensorSpec
from erniekit.parallel.tensor_stream import AwaitedTensor, CompleteTensor

_SHAPES = ((3, 4), (), (0, 2), (5,))


def _complete(values: Any, *, is_live: bool = True) -> CompleteTensor:
    return CompleteTensor(TensorSpec("weight", "F32", tuple(values.shape)), values, is_live=is_live)


def _tensors() -> list[CompleteTensor]:
    return [_complete(paddle.full(shape, number, "float32")) for number, shape in enumerate(_SHAPES)]


def test_a_copy_keeps_its_values_and_the_next_one_uses_its_memory() -> None:
    tensors, memory = _tensors(), host_copy()
    first = list(memory.start(tensors))
    memory.wait()
    size = memory.nbytes
    assert size == 4 * (12 + 1 + 0 + 5)
    for tensor in tensors:
        array_of(tensor.values)[...] += 10
    for number, (copy, shape) in enumerate(zip(first, _SHAPES, strict=True)):
        np.testing.assert_array_equal(copy, np.full(shape, number, np.float32))
    second = list(memory.start(tensors))
    assert memory.nbytes == size
    for one, other, tensor in zip(first, second, tensors, strict=True):
        np.testing.assert_array_equal(other, array_of(tensor.values))
        assert not one.size or np.shares_memory(one, other)
    others = [_complete(paddle.ones([7])), *tensors[1:], _complete(paddle.ones([2]))]
    assert [copy.size for copy in memory.start(others)] == [7, 1, 0, 5, 2]


@pytest.mark.parametrize(("most", "sizes"), [(1 << 20, [20, 1, 4, 24]), (16, [6, 4, 4, 6, 1, 4, 24])])
def test_neighbours_in_memory_are_copied_together(
    monkeypatch: pytest.MonkeyPatch, most: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(module, "_RUN_BYTES", most)
    stack, other = (
        paddle.arange(24, dtype="float32").reshape([2, 3, 4]),
        paddle.arange(24, 48, dtype="float32"),
    )
    stream = [
        *(CompleteTensor(TensorSpec("a", "F32", (2, 3)), stack, start) for start in (0, 14)),
        CompleteTensor(TensorSpec("whole", "F32", (24,)), other),
        *(CompleteTensor(TensorSpec("b", "F32", (4,)), stack, start) for start in (6, 10)),
        # Behind a gap.
        CompleteTensor(TensorSpec("c", "F32", ()), stack, 23),
        _complete(paddle.full([4], 7.0), is_live=False),
    ]
    copied: list[int] = []
    copy = np.copyto

    def copying(target: np.ndarray, source: np.ndarray) -> None:
        copied.append(source.size)
        copy(target, source)

    monkeypatch.setattr(module.np, "copyto", copying)
    memory = host_copy()
    found = [array.copy() for array in memory.start(stream)]
    memory.wait()
    assert sorted(copied) == sorted(sizes)
    flat = np.arange(24, dtype=np.float32)
    wanted = [
        flat[:6].reshape(2, 3),
        flat[14:20].reshape(2, 3),
        flat + 24,
        flat[6:10],
        flat[10:14],
        flat[23].reshape(()),
    ]
    for array, expected in zip(found, [*wanted, np.full(4, 7, np.float32)], strict=True):
        assert array.shape == expected.shape
        np.testing.assert_array_equal(array, expected)


def test_live_tensors_are_copied_later_and_others_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    may_copy, copied = threading.Event(), []

    def copy(target: np.ndarray, source: np.ndarray) -> None:
        if source[0] < 0:
            assert may_copy.wait(60)
        target[...] = source
        copied.append(float(source[0]))

    monkeypatch.setattr(module.np, "copyto", copy)
    made = []

    def tensors() -> Iterator[CompleteTensor]:
        yield _complete(paddle.full([2], -1.0))
        for number in (1.0, 2.0):
            made.append((number, list(copied)))
            yield _complete(paddle.full([2], number), is_live=False)

    memory = host_copy()
    arrays = memory.start(tensors())
    # The first one is not copied yet: training goes on, until it changes the tensor.
    assert made == [(1.0, []), (2.0, [1.0])]
    assert copied == [1.0, 2.0]
    may_copy.set()
    memory.wait()
    assert copied == [1.0, 2.0, -1.0]
    assert [float(array[0]) for array in arrays] == [-1.0, 1.0, 2.0]


def test_awaited_tensors_are_read_when_they_have_come() -> None:
    spec = TensorSpec("layer", "F32", (2, 3))
    tensors = [
        AwaitedTensor(TensorSpec("scale", "F32", ())),
        _complete(paddle.ones([4])),
        AwaitedTensor(spec),
    ]
    memory = host_copy()
    arrays = memory.start(tensors)
    assert memory.awaited == {"layer", "scale"}
    found: list[np.ndarray] = []
    reader = threading.Thread(target=lambda: found.extend(arrays))
    reader.start()
    flat = paddle.arange(12, dtype="float32")
    values = weakref.ref(flat)
    memory.supply([CompleteTensor(spec, flat, 4)])
    assert memory.awaited == {"scale"}
    memory.wait()
    # The one that is read first has not come.
    assert not found
    del flat
    memory.supply([_complete(paddle.full([], 7.0))._replace(spec=TensorSpec("scale", "F32", ()))])
    gc.collect()
    assert values() is None
    reader.join(60)
    assert not memory.awaited
    memory.wait()
    assert [array.tolist() for array in found] == [7.0, [1.0] * 4, [[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]
    # Nobody waits for it any more.
    memory.supply([CompleteTensor(spec, paddle.zeros([6]))])
    assert memory.nbytes == 4 * (6 + 1 + 4)


def test_a_layer_is_let_go_only_when_it_is_copied_and_does_not_wait_for_live_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_copy, copied = {value: threading.Event() for value in (1.0, 2.0)}, []

    def copy(target: np.ndarray, source: np.ndarray) -> None:
        assert may_copy[float(source[0])].wait(60)
        copied.append(float(source[0]))

    monkeypatch.setattr(module.np, "copyto", copy)
    memory = host_copy()
    spec = TensorSpec("layer", "F32", (1,))
    memory.start([*(_complete(paddle.full([1], 1.0)) for _ in range(9)), AwaitedTensor(spec)])
    memory.supply([CompleteTensor(spec, paddle.full([1], 2.0))])
    next_layer = threading.Thread(target=memory.supply, args=([],))
    next_layer.start()
    next_layer.join(0.05)
    assert next_layer.is_alive()
    may_copy[2.0].set()
    next_layer.join(60)
    assert copied == [2.0]
    may_copy[1.0].set()
    memory.wait()


def test_awaited_tensors_that_do_not_come_are_an_error_where_they_are_read() -> None:
    memory = host_copy()
    awaited = [AwaitedTensor(TensorSpec(name, "F32", (1,))) for name in "ab"]
    arrays = memory.start([_complete(paddle.ones([1])), *awaited])
    assert next(arrays).tolist() == [1.0]
    memory.give_up(CheckpointError("training ended"))
    with pytest.raises(CheckpointError, match="training ended"):
        next(arrays)
    assert not memory.awaited


class _Stream:
    """A stream of a GPU, whose work ends when `run` is called."""

    def __init__(self) -> None:
        self.work: list[Any] = []
        self.order: list[str] = []
        self.waited_for: _Stream | None = None

    def wait_stream(self, other: _Stream) -> None:
        self.order.append("waits")
        self.waited_for = other

    def record_event(self) -> _Stream:
        return self

    def query(self) -> bool:
        return not self.work

    def run(self) -> None:
        while self.work:
            self.work.pop(0)()


class _GpuTensor:
    """A tensor in the memory of a GPU, or its copy in pinned memory."""

    def __init__(self, stream: _Stream, values: list[float]) -> None:
        self.stream, self.values, self.shape, self.size = stream, values, [len(values)], len(values)

    def detach(self) -> _GpuTensor:
        return self

    def element_size(self) -> int:
        return 4

    def pin_memory(self, *, blocking: bool) -> _GpuTensor:
        assert not blocking
        assert self.stream.order[-1] == "entered"
        pinned = _GpuTensor(self.stream, [])
        pinned.size = self.size
        self.stream.work.append(lambda: pinned.values.extend(self.values))
        return pinned

    def numpy(self) -> np.ndarray:
        return np.array(self.values)


def test_on_a_gpu_a_stream_copies_to_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, layers, kernels = _Stream(), _Stream(), _Stream()

    class Guard:
        def __init__(self, guarded: _Stream) -> None:
            self.stream = guarded

        def __enter__(self) -> None:
            self.stream.order.append("entered")

        def __exit__(self, *_: object) -> None:
            self.stream.order.append("left")

    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    streams = iter([stream, layers])
    monkeypatch.setattr(paddle.device, "Stream", lambda: next(streams))
    monkeypatch.setattr(paddle.device, "current_stream", lambda: kernels)
    monkeypatch.setattr(paddle.device, "stream_guard", Guard)
    polls: list[float] = []
    monkeypatch.setattr(
        module.time, "sleep", lambda seconds: (polls.append(seconds), stream.run(), layers.run())
    )

    live, gathered = _GpuTensor(stream, [1.0, 2.0]), _GpuTensor(stream, [3.0])
    memory = host_copy()
    specs = [TensorSpec(name, "F32", (1,)) for name in "ab"]
    tensors = [_complete(live), _complete(gathered, is_live=False), _complete(live)]
    arrays = memory.start([*tensors, *map(AwaitedTensor, specs)])
    guarded = ["entered", "left"]
    assert stream.order == ["waits"] * 2 + guarded * 3
    assert stream.waited_for is kernels
    # The gathered tensor was waited for, and the live ones are in flight.
    assert len(polls) == 1
    assert len(stream.work) == 2
    assert memory.nbytes == 4 * 5
    # Layers have a stream of their own, for which their kernels wait before they use the memory again.
    for number, spec in enumerate(specs):
        memory.supply([CompleteTensor(spec, _GpuTensor(layers, [4.0 + number]))])  # type: ignore[arg-type]
    assert layers.order == ["waits", *guarded] * 2
    assert layers.waited_for is kernels
    assert kernels.order == ["waits"] * 2
    assert kernels.waited_for is layers
    assert (len(stream.work), len(layers.work), len(polls)) == (2, 2, 1)
    assert memory.nbytes == 4 * 7
    memory.wait()
    assert not stream.work
    assert not layers.work
    live.values[:] = [9.0, 9.0]
    assert [array.tolist() for array in arrays] == [[1.0, 2.0], [3.0], [1.0, 2.0], [4.0], [5.0]]
