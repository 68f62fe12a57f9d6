"""What every part of a run is built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from erniekit.config import Config
from erniekit.distributed.context import DistributedContext
from erniekit.runtime import compute_dtype
from erniekit.train.console import Console


@dataclass(frozen=True)
class RunContext:
    """The configuration of a run, its device ("cpu" or "gpu"), its processes, and the console.

    force: start even if the run cannot fit into memory.
    """

    config: Config
    device: str
    dist: DistributedContext
    console: Console
    force: bool = False

    @property
    def run_dir(self) -> Path:
        """The directory of the run."""
        return Path(self.config.train.output_dir)

    @property
    def log(self) -> Callable[[str], None]:
        """Prints a line."""
        return self.console.log

    @property
    def dtype(self) -> str:
        """The dtype of the computation. Raises ConfigError if the device does not compute in it."""
        return compute_dtype(self.config.model.dtype, self.device)

    @property
    def peers(self) -> DistributedContext | None:
        """The processes of a run of several, None for a single process."""
        return self.dist if self.dist.mesh.world.size > 1 else None
