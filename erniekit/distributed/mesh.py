"""The process groups of a run, one for each parallel dimension."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from erniekit.distributed.parallel_dims import ParallelDims, processes_text
from erniekit.distributed.process_group import ProcessGroup
from erniekit.distributed.startup import wait_for_port, wait_for_ranks
from erniekit.distributed.watchdog import PEER_LOST, PeerError, Watchdog
from erniekit.distributed.worker import Worker, worker_from
from erniekit.errors import ConfigError

DEFAULT_TIMEOUT = 600.0
_STORE_SECONDS, _PORT_SECONDS = 300, 60


@dataclass(frozen=True, eq=False)
class Mesh:
    """The groups of this process.

    world: all ranks; expert: ranks that share the experts of one model; replicas: ranks that hold the same experts;
    context: ranks that share a row; data: ranks that hold the same part of different rows.
    """

    dims: ParallelDims
    rank: int
    world: ProcessGroup
    expert: ProcessGroup
    replicas: ProcessGroup
    context: ProcessGroup
    data: ProcessGroup
    connection: Communicator | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and messages for all ranks."""
        return self.rank == 0

    @property
    def machine(self) -> int:
        """An identifier of this process's machine: the lowest rank on it."""
        worker = self.connection.worker if self.connection is not None else None
        return 0 if worker is None else worker.rank - worker.local_rank

    @property
    def local_size(self) -> int:
        """The number of processes on this machine."""
        return 1 if self.connection is None else self.connection.worker.local_size

    @contextmanager
    def long_operation(self, name: str) -> Iterator[None]:
        """Inside, the other ranks wait for this one without a timeout. name: for messages, "writing a checkpoint"."""
        if self.connection is None:
            yield
            return
        with self.connection.watchdog.long_operation(name):
            yield

    def before_abort(self, callback: Callable[[], None]) -> None:
        """Call this before the watchdog ends the process. It takes part in no collective."""
        if self.connection is not None:
            self.connection.watchdog.before_abort = callback

    def close(self) -> None:
        """Wait for all ranks and disconnect. Not after an error: the other ranks would never enter it."""
        if self.connection is not None:
            self.connection.close()


def local_mesh() -> Mesh:
    """The mesh of a single process, without paddle.distributed."""
    single = ProcessGroup((0,), 0)
    return Mesh(ParallelDims(), 0, single, single, single, single, single)


def connect(dims: ParallelDims, *, timeout: float = DEFAULT_TIMEOUT) -> Mesh:
    """Connect to the other processes of the run by the launcher's variables; `local_mesh` for a single process.

    Uses gloo if Paddle's device is the CPU, NCCL if it is a GPU. timeout: seconds that a collective may wait for other
    ranks. Raises ConfigError if the parallel degrees do not fit or rank 0 cannot be reached, PeerError if another rank
    has failed.
    """
    dims.validate()
    worker = worker_from(os.environ)
    world = 1 if worker is None else worker.world
    if world != dims.world:
        raise ConfigError(
            f"the parallel degrees are for {processes_text(dims.world)}, but the launcher started {world}"
        )
    if worker is None or world == 1:
        return local_mesh()
    return Communicator(worker, timeout).mesh(dims)


class Communicator:
    """The connection of this process to all others of the run, with every process group that was created over it."""

    def __init__(self, worker: Worker, timeout: float) -> None:
        import paddle
        from paddle.base import core

        from erniekit.distributed.gloo import GlooBackend

        host, port = worker.master
        wait_for_ranks(worker)
        if worker.rank and not wait_for_port(worker.master, _PORT_SECONDS):
            raise PeerError(
                f"{PEER_LOST}: rank 0 has ended before it served the store of the run at {host}:{port}"
            )
        self.worker = worker
        store = core.create_or_get_global_tcp_store()
        self._gloo = GlooBackend(worker, store) if paddle.get_device() == "cpu" else None
        if self._gloo is None:
            paddle.distributed.init_parallel_env()
        self._groups: dict[tuple[int, ...], ProcessGroup] = {}
        self.watchdog = Watchdog(worker.rank, core.TCPStore(host, port, False, 0, _STORE_SECONDS), timeout)
        self.watchdog.start()

    def mesh(self, dims: ParallelDims) -> Mesh:
        """The mesh of these degrees; groups that exist already are reused. Every rank calls this."""
        dims.validate()
        ranks_by_group = [dims.group_ranks(rank) for rank in range(dims.world)]
        for name in ranks_by_group[0]:
            for of_rank in ranks_by_group:
                self._add(of_rank[name])
        own = {name: self._groups[ranks] for name, ranks in ranks_by_group[self.worker.rank].items()}
        return Mesh(dims, self.worker.rank, **own, connection=self)

    def close(self) -> None:
        """Wait for all ranks and disconnect."""
        from erniekit.distributed.collectives import barrier

        world = self._groups[tuple(range(self.worker.world))]
        barrier(world)
        self.watchdog.close()
        # The store ends with rank 0, so every watchdog must stop before that.
        barrier(world)
        for group in self._groups.values():
            if group.rendezvous is not None:
                group.rendezvous.close()

    def _add(self, ranks: tuple[int, ...]) -> None:
        """Create a group unless it exists. Ranks outside the group call this, too, since they count groups."""
        if ranks in self._groups:
            return
        rank = self.worker.rank
        # Numbers start at 1: 0 is Paddle's default group.
        number = len(self._groups) + 1
        if len(ranks) == 1 or (rank not in ranks and self._gloo is not None):
            self._groups[ranks] = ProcessGroup(ranks, 0)
            return
        if self._gloo is not None:
            handle, rendezvous = self._gloo.group(ranks, number)
        else:
            handle, rendezvous = _nccl_group(ranks, rank), None
        if rank in ranks:
            tracker = self.watchdog.track(ranks)
            self._groups[ranks] = ProcessGroup(ranks, ranks.index(rank), handle, tracker, rendezvous)
        else:
            self._groups[ranks] = ProcessGroup(ranks, 0)


def _nccl_group(ranks: Sequence[int], rank: int) -> Any:
    import paddle

    handle = paddle.distributed.new_group(list(ranks))
    if rank in ranks:
        # NCCL connects the ranks in their first collective. That must not overlap with computation or be tracked.
        first = paddle.zeros([1])
        paddle.distributed.all_reduce(first, group=handle)
        first.numpy()
    return handle
