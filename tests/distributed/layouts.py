"""Trains in processes that are already there, one layout after another, as `erniekit train` would."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from erniekit.config import load_config
from erniekit.parallel.mesh import Connection, Layout
from erniekit.parallel.worker import worker_from
from erniekit.train.job import train_with
from erniekit.train.progress import Reporter, make_reporter
from erniekit.train.team import Team


def trainings(world: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Train as each of `runs` says, by dotted key; "resume" in one: go on with what its output_dir holds."""
    worker = worker_from(os.environ)
    assert worker is not None
    connection = Connection(worker, 120.0)
    seconds = []
    for settings in runs:
        began = time.perf_counter()
        resume = settings.pop("resume", False)
        file = Path(f"{settings['train.output_dir']}.{worker.rank}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}\n")
        config = load_config(file, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
        layout = Layout(world, config.parallel.expert, config.parallel.context)
        assert train_with(config, resume, _quiet(), "cpu", Team(connection.mesh(layout))) == 0
        seconds.append(round(time.perf_counter() - began, 1))
    connection.close()
    return {"seconds": seconds}


def _quiet() -> Reporter:
    return make_reporter()
