"""The data-parallel rank of this process, and the exchange of host values between processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import paddle

from erniekit.distributed.collectives import all_gather_uneven, all_reduce_host, barrier, broadcast_
from erniekit.distributed.mesh import Mesh

Made = TypeVar("Made")


class DistributedContext:
    """Ranks of this process, and collectives of host values.

    rank, size: data-parallel rank and degree. part: context-parallel rank, the part of each row that this process
    computes; counts: whether it counts the row in sums, on behalf of its context-parallel group.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.rank, self.size = mesh.data.rank, mesh.data.size
        self.part, self.counts = mesh.context.rank, mesh.context.rank == 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and messages for all ranks."""
        return self.mesh.is_main

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """Sum of an int64 or float64 array over all processes."""
        return all_reduce_host(array, self.mesh.world)

    def broadcast(self, array: np.ndarray) -> np.ndarray:
        """Broadcast from the main process: int64, float32 or float64, of the same shape on all processes."""
        if self.mesh.world.size == 1:
            return array
        tensor = paddle.to_tensor(array)
        broadcast_(tensor, 0, self.mesh.world)
        received: np.ndarray = tensor.numpy()
        return received

    def all_gather_object(self, value: Any) -> list[Any]:
        """All-gather of JSON values, in the order of ranks."""
        world = self.mesh.world
        if world.size == 1:
            return [value]
        data = np.frombuffer(json.dumps(value).encode(), np.uint8).astype(np.int32)
        counts = np.zeros(world.size, np.int64)
        counts[world.rank] = data.size
        counts = self.all_reduce(counts)
        gathered = all_gather_uneven(paddle.to_tensor(data), counts.tolist(), world).numpy()
        parts = np.split(gathered.astype(np.uint8), np.cumsum(counts)[:-1])
        return [json.loads(part.tobytes()) for part in parts]

    def barrier(self) -> None:
        """Barrier of all processes."""
        barrier(self.mesh.world)

    def make_once(self, what: str, make: Callable[[], Made], is_here: Callable[[Made], bool]) -> Made:
        """Call `make`, which creates files and returns a JSON value about them, once for each shared disk.

        The main process calls it first, without a timeout. On machines that do not see its files (`is_here`), one
        process calls it again. Returns the value that applies on this machine. what: for messages.
        """
        world, made = self.mesh.world, None
        if world.size == 1:
            return make()
        machine = self.mesh.machine
        makers = [0]
        while True:
            if world.rank in makers:
                with self.mesh.long_operation(what):
                    made = make()
            values = [
                value
                for value in self.all_gather_object(made if world.rank in makers else None)
                if value is not None
            ]
            if made is None:
                made = next((value for value in values if is_here(value)), None)
            machines = self.all_gather_object(machine if made is None else None)
            makers = [
                rank
                for rank, other in enumerate(machines)
                if other is not None and other not in machines[:rank]
            ]
            if made is not None and not makers:
                return made

    def close(self) -> None:
        """Wait for all processes and disconnect."""
        self.mesh.close()
