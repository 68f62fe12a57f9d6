"""What the tests of the collectives run in each process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor

from erniekit.distributed import collectives as c
from erniekit.distributed import differentiable as d
from erniekit.distributed import watchdog
from erniekit.distributed.mesh import Mesh, connect
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.distributed.process_group import ProcessGroup
from erniekit.distributed.transport import PaddleCollectives
from erniekit.distributed.watchdog import Collective
from erniekit.launch.launch import end_other_nodes
from tests.closeness import assert_close

DTYPES = ("float32", "bfloat16", "int64")
# Seconds that a collective may wait, where one is to wait too long; on a busy machine the others are heard of by then.
PATIENCE = 4.0
# Rows that each rank (line) sends to each: plain, with zeros, a rank with nothing, all to one rank, nothing at all.
PATTERNS = {
    "uneven": lambda i, j: 1 + (3 * i + 5 * j) % 4,
    "zeros": lambda i, j: (i * j + j) % 3,
    "silent rank": lambda i, j: 0 if i == 1 else i + j,
    "all to one": lambda i, j: 3 + i if j == 0 else 0,
    "nothing": lambda i, j: 0,
}


def rows_of(source: int, target: int, count: int, dtype: str, width: int = 3) -> np.ndarray:
    """What `source` sends to `target`: exact in bfloat16."""
    first = 16 * source + target
    values = first + np.arange(count * width).reshape(count, width) % 4
    return values.astype("int64" if dtype == "int64" else "float32")


def to_array(tensor: Tensor) -> np.ndarray:
    return tensor.astype("float32").numpy() if tensor.dtype == paddle.bfloat16 else tensor.numpy()


def counts_of(pattern: str, size: int) -> np.ndarray:
    return np.array([[PATTERNS[pattern](i, j) for j in range(size)] for i in range(size)])


def all_checks(world: int) -> dict[str, Any]:
    """Every check on the group of all, over gloo and, with gloo in the place of NCCL, on the native path."""
    mesh = connect(ParallelDims(world))
    group = mesh.world
    for dtype in DTYPES:
        check_moves(group, dtype)
        check_reductions(group, dtype)
    check_host(group)
    check_refusals(group)
    check_gradients(group)
    check_shared_sum(group)
    with (
        mock.patch.multiple(
            dist.stream,
            alltoall_single=lambda out, x, recv, send, **_: _alltoall_single(out, x, recv, send, mesh),
            reduce_scatter=lambda out, x, **_: _reduce_scatter(out, x, mesh),
        ),
        mock.patch.object(c, "transport_of", lambda group: PaddleCollectives()),
    ):
        for dtype in DTYPES:
            check_moves(group, dtype)
            check_reductions(group, dtype)
        check_gradients(group)
        check_shared_sum(group)
    groups = check_layouts(mesh)
    mesh.close()
    return {"groups": groups, "calls": group.tracker.last.number if group.tracker else 0}


def check_moves(group: ProcessGroup, dtype: str) -> None:
    """All-to-all and all-gathers against what they must bring."""
    me, size = group.rank, group.size
    for pattern in PATTERNS:
        counts = counts_of(pattern, size)
        sent = np.concatenate([rows_of(me, j, counts[me, j], dtype) for j in range(size)])
        expected = np.concatenate([rows_of(i, me, counts[i, me], dtype) for i in range(size)])
        received = c.exchange_counts(paddle.to_tensor(np.stack([counts[me], 7 * counts[me]], 1)), group)[1]
        np.testing.assert_array_equal(received, np.stack([counts[:, me], 7 * counts[:, me]], 1))
        x = paddle.to_tensor(sent).astype(dtype)
        out = c.all_to_all(x, counts[me].tolist(), counts[:, me].tolist(), group)
        assert out.dtype == x.dtype
        np.testing.assert_array_equal(to_array(out), expected, err_msg=f"{pattern} {dtype}")
        back = c.all_to_all(out, counts[:, me].tolist(), counts[me].tolist(), group)
        np.testing.assert_array_equal(to_array(back), sent)

        own = counts[:, 0].tolist()
        part = paddle.to_tensor(rows_of(me, 0, own[me], dtype)).astype(dtype)
        gathered = c.all_gather_uneven(part, own, group)
        expected = np.concatenate([rows_of(i, 0, own[i], dtype) for i in range(size)])
        np.testing.assert_array_equal(to_array(gathered), expected)
        for target in range(size):
            found = c.gather_uneven(part, own, target, group)
            assert (found is None) == (me != target)
            if found is not None:
                np.testing.assert_array_equal(to_array(found), expected)
    for count in (0, 2):
        part = paddle.to_tensor(rows_of(me, 1, count, dtype)).astype(dtype)
        expected = np.concatenate([rows_of(i, 1, count, dtype) for i in range(size)])
        np.testing.assert_array_equal(to_array(c.all_gather(part, group)), expected)
        for source in range(size):
            copy = part.clone()
            c.broadcast_(copy, source, group)
            np.testing.assert_array_equal(to_array(copy), rows_of(source, 1, count, dtype))


def check_reductions(group: ProcessGroup, dtype: str) -> None:
    """Sums, maxima and reduce-scatters."""
    me, size = group.rank, group.size
    for count in (0, 2):
        x = paddle.to_tensor(rows_of(me, 0, count * size, dtype)).astype(dtype)
        total = sum(rows_of(i, 0, count * size, dtype) for i in range(size))
        part = c.reduce_scatter(x, group)
        np.testing.assert_array_equal(to_array(part), total[count * me : count * (me + 1)])
        c.all_reduce_(x, group)
        np.testing.assert_array_equal(to_array(x), total)
        c.all_reduce_(x, group, "max")
        np.testing.assert_array_equal(to_array(x), total)


def check_host(group: ProcessGroup) -> None:
    """Integers on the host are exact, where float32 would round them."""
    large = np.array([2**53 + 1, group.rank], np.int64)
    expected = [group.size * (2**53 + 1), sum(range(group.size))]
    np.testing.assert_array_equal(c.all_reduce_host(large, group), expected)
    np.testing.assert_array_equal(large, [2**53 + 1, group.rank])
    greatest = c.all_reduce_host(np.array([float(group.rank)]), group, "max")
    np.testing.assert_array_equal(greatest, [group.size - 1.0])
    assert c.all_reduce_host(np.zeros((0, 2)), group).shape == (0, 2)
    c.barrier(group)


def check_refusals(group: ProcessGroup) -> None:
    """What cannot be sent, or does not fit, is refused before anybody waits."""
    half, x = paddle.ones([group.size], "float16"), paddle.ones([3])
    zeros = [0] * group.size
    wrong: list[Callable[[], Any]] = [
        lambda: c.all_reduce_(half, group),
        lambda: c.all_gather(half, group),
        lambda: c.all_to_all(half, [1] * group.size, [1] * group.size, group),
        lambda: c.all_to_all(x, zeros, zeros, group),
        lambda: c.all_to_all(x, [3], [3], group),
        lambda: c.all_gather_uneven(x, zeros, group),
        lambda: c.gather_uneven(x, zeros, 0, group),
        lambda: c.reduce_scatter(paddle.ones([group.size + 1]), group),
        lambda: c.all_reduce_host(np.ones(1, np.float32), group),
    ]
    for call in wrong:
        try:
            call()
        except ValueError:
            continue
        raise AssertionError("was not refused")


def check_gradients(group: ProcessGroup) -> None:
    """Gradients of the differentiable forms against differences of a loss summed over all ranks."""
    me, size = group.rank, group.size
    for pattern in PATTERNS:
        counts = counts_of(pattern, size)
        send, recv = counts[me].tolist(), counts[:, me].tolist()
        _check_gradient(group, sum(send), lambda x, s=send, r=recv: d.all_to_all_rows(x, s, r, group))


def check_shared_sum(group: ProcessGroup) -> None:
    """Gradient of one loss that every rank computes from sums over all, against differences."""
    rng = np.random.default_rng(group.rank)
    values, direction = rng.normal(size=(2, 5))

    def loss(at: np.ndarray) -> tuple[Tensor, Tensor]:
        x = paddle.to_tensor(at)
        x.stop_gradient = False
        return x, (d.shared_sum(x, group) ** 3 * paddle.arange(1, 6, dtype="float64")).sum()

    x, whole = loss(values)
    whole.backward()
    small = 1e-4
    with paddle.no_grad():
        ends = [float(loss(values + sign * small * direction)[1]) for sign in (1, -1)]
    exact = c.all_reduce_host(np.array([float((x.grad.numpy() * direction).sum())]), group)
    terms = c.all_reduce_host(np.array([float(abs(x.grad.numpy() * direction).sum())]), group)
    assert_close(exact, [(ends[0] - ends[1]) / (2 * small)], scale=float(terms[0]))


def _check_gradient(group: ProcessGroup, rows: int, function: Callable[[Tensor], Tensor]) -> None:
    def loss(values: np.ndarray) -> tuple[Tensor, Tensor]:
        x = paddle.to_tensor(values)
        x.stop_gradient = False
        y = function(x)
        # A weight of its own for each element on each rank, and not linear.
        weights = paddle.arange(1, y.size + 1, dtype="float64").reshape(y.shape) * (group.rank + 1)
        return x, (weights * y * y).sum()

    rng = np.random.default_rng(group.rank)
    values = rng.normal(size=(rows, 2))
    x, own = loss(values)
    own.backward()
    gradient = x.grad.numpy() if x.grad is not None else np.zeros_like(values)
    assert gradient.shape == values.shape

    direction, small = rng.normal(size=values.shape), 1e-4
    with paddle.no_grad():
        ends = [float(loss(values + sign * small * direction)[1]) for sign in (1, -1)]
    products = gradient * direction
    slope = np.array([(ends[0] - ends[1]) / (2 * small), products.sum(), abs(products).sum()])
    numeric, exact, terms = c.all_reduce_host(slope, group).tolist()
    assert_close(exact, numeric, scale=terms)


def check_layouts(mesh: Mesh) -> dict[str, list[int]]:
    """Other layouts over the same connection: their groups and a sum in each."""
    assert mesh.connection is not None
    world = mesh.dims.world
    if world % 2:
        return {}
    dims = ParallelDims(world, expert=2, context=world // 2)
    other = mesh.connection.mesh(dims)
    assert other.world is mesh.world
    found = {}
    for name, ranks in dims.group_ranks(mesh.rank).items():
        group = getattr(other, name)
        assert group.ranks == ranks
        found[name] = c.all_reduce_host(np.array([1, mesh.rank], np.int64), group).tolist()
        assert found[name] == [len(ranks), sum(ranks)]
    return found


def _alltoall_single(out: Tensor, x: Tensor, recv: list[int], send: list[int], mesh: Mesh) -> None:
    """NCCL's all-to-all as gloo does it."""
    from erniekit.distributed.transport import GlooCollectives

    paddle.assign(GlooCollectives().all_to_all(x, send, recv, mesh.world, Collective("", 0, 0.0)), out)


def _reduce_scatter(out: Tensor, x: Tensor, mesh: Mesh) -> None:
    from erniekit.distributed.transport import GlooCollectives

    paddle.assign(GlooCollectives().reduce_scatter(x, mesh.world, Collective("", 0, 0.0)), out)


def timings(world: int, megabytes: int) -> dict[str, Any]:
    """Milliseconds of an even all-to-all, and seconds until the processes were connected."""
    begun = time.monotonic()
    mesh = connect(ParallelDims(world))
    connected = time.monotonic() - begun
    width = 256
    rows = megabytes * 2**20 // 4 // width
    x, each = paddle.ones([rows, width]), [rows // world] * world
    found = {"connect_s": connected}
    for name, call in {
        "all_to_all_ms": lambda: c.all_to_all(x, each, each, mesh.world),
        "reduce_scatter_ms": lambda: c.reduce_scatter(x, mesh.world),
        "all_reduce_ms": lambda: c.all_reduce_(x.clone(), mesh.world),
        "all_gather_ms": lambda: c.all_gather(x, mesh.world),
        "barrier_ms": lambda: c.barrier(mesh.world),
        "exchange_counts_ms": lambda: c.exchange_counts(paddle.ones([world, 4], "int64"), mesh.world),
    }.items():
        call()
        c.barrier(mesh.world)
        begun = time.monotonic()
        for _ in range(10):
            call()
        found[name] = (time.monotonic() - begun) * 100
    mesh.close()
    return found


def hang(world: int) -> None:
    """Rank 1 does not come to the third collective."""
    mesh = connect(ParallelDims(world), timeout=PATIENCE)
    x = paddle.ones([2])
    c.barrier(mesh.world)
    c.all_reduce_(x, mesh.world)
    if mesh.rank == 1:
        time.sleep(1000)
    c.all_gather(x, mesh.world)


def busy(world: int, notices: str) -> None:
    """Rank 0 alone does something that takes longer than the others may wait. notices: a file for the
    output of the watchdog."""
    mesh = connect(ParallelDims(world), timeout=PATIENCE)
    with _noticing(notices):
        if mesh.is_main:
            with mesh.long_operation("saving"):
                _until_noticed(notices, "saving")
        c.barrier(mesh.world)
        mesh.close()


def slow_reader(world: int, notices: str) -> None:
    """Rank 1 encodes all data after the main process, whose disk it does not see, and loads the model, both longer
    than others may wait."""
    from erniekit.distributed.context import DistributedContext
    from erniekit.train import model

    def load(*arguments: Any, **options: Any) -> mock.Mock:
        if mesh.rank:
            _until_noticed(notices, "loading the model")
        return mock.Mock()

    mesh = connect(ParallelDims(world), timeout=PATIENCE)
    dist = DistributedContext(mesh)

    def encode() -> list[int]:
        if mesh.rank:
            _until_noticed(notices, "encoding the data")
        return [mesh.rank]

    with _noticing(notices):
        assert dist.make_once("encoding the data", encode, lambda made: False) == [mesh.rank]
        dist.barrier()
        with mock.patch.object(model, "load_model", load):
            model.load_sharded(Path("model"), "float32", mesh, "none")
        dist.barrier()
        dist.close()


@contextmanager
def _noticing(notices: str) -> Iterator[None]:
    """What the watchdog of this process writes goes to a file as well."""

    def write(text: str) -> None:
        real(text)
        with open(notices, "a", encoding="utf-8") as file:
            file.write(text)

    real = watchdog._write
    with mock.patch.object(watchdog, "_write", write):
        yield


def _until_noticed(notices: str, words: str) -> None:
    while not (os.path.exists(notices) and words in Path(notices).read_text(encoding="utf-8")):
        time.sleep(0.05)


def mismatch(world: int) -> None:
    """The ranks enter different collectives."""
    mesh = connect(ParallelDims(world))
    if mesh.rank:
        c.barrier(mesh.world)
    else:
        c.all_reduce_(paddle.ones([2]), mesh.world)


def death(world: int) -> None:
    """Rank 1 ends between two collectives; the others learn it from the collective that breaks."""
    mesh = connect(ParallelDims(world))
    c.barrier(mesh.world)
    if mesh.rank == 1:
        os._exit(9)
    while True:
        c.all_reduce_(paddle.ones([2]), mesh.world)


def stopped_elsewhere(world: int) -> None:
    """A launcher on another machine reports why the run ends; no rank is in a collective."""
    mesh = connect(ParallelDims(world), timeout=2)
    assert mesh.connection is not None
    if mesh.is_main:
        end_other_nodes(mesh.connection.worker.master, "rank 7 was killed by SIGKILL")
    time.sleep(1000)
