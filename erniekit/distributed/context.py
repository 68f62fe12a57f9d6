"""This process among those of a run, and what they exchange outside the model."""

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
    """This process and the others.

    rank, size: of the processes, or groups of them, with rows of their own. part: which part of each row is this
    process's; counts: whether it is the one that counts the row for all that share it.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.rank, self.size = mesh.data.rank, mesh.data.size
        self.part, self.counts = mesh.context.rank, mesh.context.rank == 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.mesh.is_main

    def add(self, array: np.ndarray) -> np.ndarray:
        """Numbers of all processes added up, int64 or float64."""
        return all_reduce_host(array, self.mesh.world)

    def from_main(self, array: np.ndarray) -> np.ndarray:
        """What the main process has in the place of `array`: int64, float32 or float64, of one shape everywhere."""
        if self.mesh.world.size == 1:
            return array
        tensor = paddle.to_tensor(array)
        broadcast_(tensor, 0, self.mesh.world)
        received: np.ndarray = tensor.numpy()
        return received

    def gather(self, value: Any) -> list[Any]:
        """JSON values of all processes, in the order of ranks."""
        world = self.mesh.world
        if world.size == 1:
            return [value]
        data = np.frombuffer(json.dumps(value).encode(), np.uint8).astype(np.int32)
        counts = np.zeros(world.size, np.int64)
        counts[world.rank] = data.size
        counts = self.add(counts)
        gathered = all_gather_uneven(paddle.to_tensor(data), counts.tolist(), world).numpy()
        parts = np.split(gathered.astype(np.uint8), np.cumsum(counts)[:-1])
        return [json.loads(part.tobytes()) for part in parts]

    def wait(self) -> None:
        """Until all processes are here."""
        barrier(self.mesh.world)

    def make_once(self, what: str, make: Callable[[], Made], is_here: Callable[[Made], bool]) -> Made:
        """What `make` makes on disk, told as JSON values: by the main process, and where others do not see that
        (`is_here`), on machines with disks of their own, by one process of each such machine. Either may take long.
        """
        world, made = self.mesh.world, None
        if world.size == 1:
            return make()
        machine = self.mesh.machine
        makers = [0]
        while True:
            if world.rank in makers:
                with self.mesh.busy(what):
                    made = make()
            offers = [
                offer for offer in self.gather(made if world.rank in makers else None) if offer is not None
            ]
            if made is None:
                made = next((offer for offer in offers if is_here(offer)), None)
            machines = self.gather(machine if made is None else None)
            makers = [
                rank for rank, name in enumerate(machines) if name is not None and name not in machines[:rank]
            ]
            if made is not None and not makers:
                return made

    def close(self) -> None:
        """Leave the others."""
        self.mesh.close()
