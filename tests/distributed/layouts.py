"""Trains in processes that are already there, one layout after another, as `erniekit train` would."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from erniekit.cli.main import main
from erniekit.config import load_config
from erniekit.distributed.context import DistributedContext
from erniekit.distributed.mesh import Communicator, local_mesh
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.distributed.worker import worker_from
from erniekit.train.console import make_console
from erniekit.train.run import train_together
from erniekit.train.run_context import RunContext
from tests.distributed.processes import OTHERS_HANG


def trainings(world: int, runs: list[dict[str, Any]], resume: bool = False) -> dict[str, Any]:
    """Train each of `runs`, by dotted key; `resume` continues all of them."""
    worker = worker_from(os.environ)
    assert worker is not None
    connection = Communicator(worker, OTHERS_HANG) if world > 1 else None
    for settings in runs:
        file = Path(f"{settings['train.output_dir']}.{worker.rank}.yaml")
        file.write_text("{}\n")
        config = load_config(file, overrides(settings))
        dims = ParallelDims(world, config.parallel.expert, config.parallel.context)
        dist = DistributedContext(local_mesh() if connection is None else connection.mesh(dims))
        assert (
            train_together(RunContext(config, "cpu", dist, make_console(dist.mesh.rank)), resume=resume) == 0
        )
    if connection is not None:
        connection.close()
    return {"runs": len(runs)}


def train_command(file: str, settings: dict[str, Any], *options: str) -> None:
    """`erniekit train` as the launcher starts it in each process."""
    with mock.patch.object(sys, "argv", ["erniekit", "train", file, *overrides(settings), *options]):
        main()


def overrides(settings: dict[str, Any]) -> list[str]:
    """The settings as the command line takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
