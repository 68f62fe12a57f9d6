"""Which processes a process works with, and for what."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from erniekit.distributed.parallel_dims import ParallelDims, processes_text
from erniekit.distributed.process_group import ProcessGroup
from erniekit.distributed.watchdog import Watchdog
from erniekit.distributed.worker import Worker, worker_from
from erniekit.errors import ConfigError

DEFAULT_TIMEOUT = 600.0
_STORE_SECONDS = 300


@dataclass(frozen=True, eq=False)
class Mesh:
    """This process among the others.

    world: all; expert: those that share the experts; replicas: those that hold the same experts; context: those
    that share its rows; data: those that have the same part of other rows.
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
        """Whether this process writes and tells for all."""
        return self.rank == 0

    @property
    def machine(self) -> int:
        """Tells this process's machine from the others: the rank of the first process on it."""
        worker = self.connection.worker if self.connection is not None else None
        return 0 if worker is None else worker.rank - worker.local_rank

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Around what this rank does alone, such as "writing a checkpoint": the others wait, however long."""
        if self.connection is None:
            yield
            return
        with self.connection.watchdog.busy(what):
            yield

    def close(self) -> None:
        """Wait for all ranks to come here, and part. Not called where a run ends by an error."""
        if self.connection is not None:
            self.connection.close()


def local_mesh() -> Mesh:
    """A single process, without paddle.distributed."""
    alone = ProcessGroup((0,), 0)
    return Mesh(ParallelDims(), 0, alone, alone, alone, alone, alone)


def connect(dims: ParallelDims, *, timeout: float = DEFAULT_TIMEOUT) -> Mesh:
    """Join the other processes of the run, as a launcher said in the environment; a lone process is `local_mesh`.

    Over gloo where Paddle's device is the CPU, over NCCL where it is a GPU. timeout: seconds that a collective may
    wait for other ranks. Raises ConfigError where the layout does not fit, or the others cannot be reached.
    """
    dims.validate()
    worker = worker_from(os.environ)
    world = 1 if worker is None else worker.world
    if world != dims.world:
        raise ConfigError(f"the layout is for {processes_text(dims.world)}, but the launcher started {world}")
    if worker is None or world == 1:
        return local_mesh()
    return Communicator(worker, timeout).mesh(dims)


class Communicator:
    """This process's connection with all others of the run, and every group that was made over it."""

    def __init__(self, worker: Worker, timeout: float) -> None:
        import paddle
        from paddle.base import core

        from erniekit.distributed.gloo import GlooBackend, wait_for_port

        host, port = worker.master
        if worker.rank and not wait_for_port(worker.master, _STORE_SECONDS):
            raise ConfigError(
                f"nobody answers at {host}:{port} for {_STORE_SECONDS} s: is rank 0 running there, and can this "
                "machine reach it?"
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
        """The groups of a layout; those that an earlier one had are used again. Every rank calls this."""
        dims.validate()
        everyone = [dims.groups(rank) for rank in range(dims.world)]
        for name in everyone[0]:
            for groups in everyone:
                self._add(groups[name])
        own = {name: self._groups[ranks] for name, ranks in everyone[self.worker.rank].items()}
        return Mesh(dims, self.worker.rank, **own, connection=self)

    def close(self) -> None:
        """Wait for all ranks to come here, and part."""
        from erniekit.distributed.collectives import barrier

        everyone = self._groups[tuple(range(self.worker.world))]
        barrier(everyone)
        self.watchdog.close()
        # Rank 0 takes the store away, which every watchdog must have done with.
        barrier(everyone)
        for group in self._groups.values():
            if group.rendezvous is not None:
                group.rendezvous.close()

    def _add(self, ranks: tuple[int, ...]) -> None:
        """Make a group where there is none yet; ranks that are not in it count it too."""
        if ranks in self._groups:
            return
        rank = self.worker.rank
        # Numbers start at 1: Paddle's own group of all has 0.
        number = len(self._groups) + 1
        if len(ranks) == 1 or (rank not in ranks and self._gloo is not None):
            self._groups[ranks] = ProcessGroup(ranks, 0)
            return
        if self._gloo is not None:
            handle, rendezvous = self._gloo.group(ranks, number)
        else:
            handle, rendezvous = _nccl_group(ranks, rank), None
        if rank in ranks:
            calls = self.watchdog.calls(ranks)
            self._groups[ranks] = ProcessGroup(ranks, ranks.index(rank), handle, calls, rendezvous)
        else:
            self._groups[ranks] = ProcessGroup(ranks, 0)


def _nccl_group(ranks: Sequence[int], own: int) -> Any:
    import paddle

    handle = paddle.distributed.new_group(list(ranks))
    if own in ranks:
        # NCCL connects the ranks in their first collective, which is not to be beside computation or a watched one.
        first = paddle.zeros([1])
        paddle.distributed.all_reduce(first, group=handle)
        first.numpy()
    return handle
