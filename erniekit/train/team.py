"""The processes that train one model together, as the training loop sees them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import paddle

from erniekit.config import Config
from erniekit.errors import ConfigError
from erniekit.models.config import ErnieConfig
from erniekit.parallel.collectives import all_gather_uneven, all_reduce_host, barrier, broadcast_
from erniekit.parallel.mesh import Layout, Mesh, connect, local_mesh
from erniekit.parallel.worker import Worker

Made = TypeVar("Made")


class Team:
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


def plan_layout(config: Config, processes: int) -> Layout:
    """How so many processes would share the run. Reads the model's config.json. Raises as `fit_layout` does."""
    return fit_layout(config, ErnieConfig.from_dir(config.model.path), processes)


def fit_layout(config: Config, model: ErnieConfig, processes: int) -> Layout:
    """How so many processes would share a run of that architecture.

    Raises ConfigError where the degrees of `parallel` do not fit the processes, the model or train.rows_per_step.
    """
    parallel, rows = config.parallel, config.train.rows_per_step
    layout = Layout(processes, parallel.expert, parallel.context)
    layout.validate(
        [] if model.moe is None else [model.moe.num_experts] * model.moe.num_modalities,
        (model.num_attention_heads, model.num_key_value_heads),
    )
    if rows % layout.data:
        who = "processes" if layout.context == 1 else f"groups of {layout.context} processes"
        below = max(1, rows // layout.data)
        raise ConfigError(
            f"train.rows_per_step is {rows}, which does not divide among the {layout.data} {who} of this run "
            f"(--devices): use {below * layout.data}, {(below + 1) * layout.data} or another multiple of {layout.data}"
        )
    return layout


def assemble(config: Config, worker: Worker | None) -> Team:
    """The team that the configuration asks for. worker: None where this process was started alone.

    Raises ConfigError as `plan_layout` does.
    """
    layout = plan_layout(config, 1 if worker is None else worker.world)
    return Team(local_mesh() if worker is None else connect(layout, timeout=config.parallel.timeout))
