"""Compares collectives of all processes with the expected results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import paddle
from paddle import Tensor

from erniekit.distributed import collectives
from erniekit.distributed.process_group import ProcessGroup

_DTYPES = ("float32", "bfloat16", "int64")
_REPEATS = 5


def check_collectives(group: ProcessGroup) -> tuple[list[str], list[str]]:
    """Names of the collectives with right and with wrong results on this rank. All ranks call this together."""
    right: list[str] = []
    wrong: list[str] = []
    for name, check in _CHECKS.items():
        (right if all([check(group, dtype) for dtype in _DTYPES]) else wrong).append(name)
    return right, wrong


def all_reduce_speed(group: ProcessGroup, size: int) -> str:
    """The speed of an all-reduce of `size` bytes of float32, as NCCL's bus bandwidth."""
    tensor = paddle.zeros([size // 4], "float32")
    times = []
    for _ in range(_REPEATS):
        collectives.barrier(group)
        begin = time.perf_counter()
        collectives.all_reduce_(tensor, group)
        float(tensor[0])  # waits for the device
        times.append(time.perf_counter() - begin)
    moved = 2 * (group.size - 1) / group.size * size
    return f"all_reduce of {size >> 20} MiB: {moved / float(np.median(times)) / 1e9:.2f} GB/s"


def _part(rank: int, rows: int, dtype: str) -> Tensor:
    """Rows of a rank: exact in bfloat16."""
    values = np.arange(rows * 3).reshape(rows, 3) % 7 + 10 * rank
    return paddle.to_tensor(values.astype("int64" if dtype == "int64" else "float32")).astype(dtype)


def _same(found: Tensor, expected: Tensor) -> bool:
    wide = "int64" if found.dtype == paddle.int64 else "float32"
    same = found.astype(wide) == expected.astype(wide)
    return found.shape == expected.shape and bool(same.all())


def _parts(group: ProcessGroup, rows: Callable[[int], int], dtype: str) -> list[Tensor]:
    return [_part(rank, rows(rank), dtype) for rank in range(group.size)]


def _total(parts: Sequence[Tensor]) -> Tensor:
    # Paddle's CPU kernels have no bfloat16.
    wide = "int64" if parts[0].dtype == paddle.int64 else "float32"
    return paddle.stack([part.astype(wide) for part in parts]).sum(0).astype(parts[0].dtype)


def _all_reduce(group: ProcessGroup, dtype: str) -> bool:
    parts = _parts(group, lambda rank: 5, dtype)
    tensor = parts[group.rank].clone()
    collectives.all_reduce_(tensor, group)
    return _same(tensor, _total(parts))


def _broadcast(group: ProcessGroup, dtype: str) -> bool:
    parts = _parts(group, lambda rank: 4, dtype)
    tensor = parts[group.rank].clone()
    collectives.broadcast_(tensor, group.size - 1, group)
    return _same(tensor, parts[-1])


def _all_gather(group: ProcessGroup, dtype: str) -> bool:
    parts = _parts(group, lambda rank: 3 * rank, dtype)
    counts = [3 * rank for rank in range(group.size)]
    return _same(collectives.all_gather_uneven(parts[group.rank], counts, group), paddle.concat(parts))


def _reduce_scatter(group: ProcessGroup, dtype: str) -> bool:
    parts = _parts(group, lambda rank: 2 * group.size, dtype)
    found = collectives.reduce_scatter(parts[group.rank], group)
    return _same(found, _total(parts)[2 * group.rank : 2 * group.rank + 2])


def _all_to_all(group: ProcessGroup, dtype: str) -> bool:
    """An uneven all-to-all; rank 0 sends nothing to itself, and the last rank sends nothing at all."""

    def sent(source: int, target: int) -> int:
        return 0 if source == group.size - 1 else source + target

    send = [sent(group.rank, target) for target in range(group.size)]
    receive = [sent(source, group.rank) for source in range(group.size)]
    expected = []
    for source, count in enumerate(receive):
        start = sum(sent(source, target) for target in range(group.rank))
        rows = _part(source, sum(sent(source, target) for target in range(group.size)), dtype)
        expected.append(rows[start : start + count])
    found = collectives.all_to_all(_part(group.rank, sum(send), dtype), send, receive, group)
    return _same(found, paddle.concat(expected))


_CHECKS: dict[str, Callable[[ProcessGroup, str], bool]] = {
    "all_reduce": _all_reduce,
    "broadcast": _broadcast,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
}
