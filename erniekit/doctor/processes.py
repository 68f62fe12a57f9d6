"""Checks with two processes: collectives, and training in every parallel layout, compared with one process.

This module is also the program of the processes: `python -m erniekit.doctor.processes DIRECTORY`. They write their
results into the directory.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from erniekit.config import Config
from erniekit.distributed.worker import LOCALHOST, Worker, worker_from
from erniekit.doctor.check import Check, Result, failed, ok
from erniekit.doctor.step import SmallModel
from erniekit.errors import ConfigError
from erniekit.launch.launch import free_port, process_environment

PROCESSES = 2
LAYOUTS: dict[str, dict[str, dict[str, Any]]] = {
    "data": {},
    "expert": {"parallel": {"expert": 2}},
    "context": {"parallel": {"context": 2}},
    "shard: parameters": {"parallel": {"shard": "parameters"}, "train": {"recompute": "layers"}},
}
_SECONDS = 600
_TOLERANCE = {"cpu": 1e-4, "gpu": 2e-2}
# Bytes of the all-reduce that is timed.
_SUMMED = {"cpu": 1 << 20, "gpu": 256 << 20}
_RESULTS = "results-{rank}.json"


def process_checks(device: str, model: SmallModel) -> list[Check]:
    """Checks with two processes. They start once, for the first check; device: "cpu" over gloo, "gpu" over NCCL."""
    pair = _Pair(device, model)
    backend = "NCCL" if device == "gpu" else "gloo"
    checks = [Check("processes", f"collectives over {backend}", pair.check_collectives)]
    return checks + [
        Check("processes", f"training, {name}", partial(pair.check_layout, name)) for name in LAYOUTS
    ]


class _Pair:
    """Two processes that run once, and their results."""

    def __init__(self, device: str, model: SmallModel) -> None:
        self.device, self.model = device, model
        self._results: list[dict[str, Any]] | None = None

    def check_collectives(self) -> Result:
        """Whether each collective has the right result on both ranks."""
        results = self._run()
        wrong = sorted({name for found in results for name in found["wrong"]})
        if wrong:
            return failed(f"wrong results of {', '.join(wrong)}")
        return ok(f"{', '.join(results[0]['right'])}; {results[0]['speed']}")

    def check_layout(self, name: str) -> Result:
        """Compares losses and gradient norms of two steps with a run on one process."""
        self._run()
        expected, found = (_losses(self.model.directory / run) for run in (run_name("one"), run_name(name)))
        worst = max(abs(one / other - 1) for one, other in zip(found, expected, strict=True))
        text = f"losses and gradient norms of two steps differ from one process by {worst:.1e}"
        allowed = _TOLERANCE[self.device]
        return ok(text) if worst <= allowed else failed(f"{text}, allowed {allowed:.0e}")

    def _run(self) -> list[dict[str, Any]]:
        if self._results is None:
            # An empty list after a failure: the other checks of these processes then fail at once.
            self._results = []
            self._results = run_pair(self.device, self.model)
        if not self._results:
            raise ConfigError("the processes did not finish, see above")
        return self._results


def run_pair(device: str, model: SmallModel, seconds: float = _SECONDS) -> list[dict[str, Any]]:
    """Train in this process, then start two; returns their results. Raises ConfigError with the end of their output."""
    from erniekit.train.run import run_training

    directory = model.directory
    settings = {
        name: model.settings(run_name(name), **layout) for name, layout in {"one": {}, **LAYOUTS}.items()
    }
    with redirect_stdout(io.StringIO()):
        run_training(Config.model_validate(_on(settings.pop("one"), device)))
    plan = {"device": device, "runs": [_on(run, device) for run in settings.values()]}
    (directory / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    master = (LOCALHOST, free_port())
    outputs = [directory / f"output-{rank}.txt" for rank in range(PROCESSES)]
    processes = []
    for rank, output in enumerate(outputs):
        worker = Worker(rank, PROCESSES, rank, PROCESSES, master)
        environment = process_environment(worker, rank if device == "gpu" else None)
        command = [sys.executable, "-m", "erniekit.doctor.processes", str(directory)]
        with output.open("wb") as file:
            processes.append(
                subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
            )
    killed = _wait(processes, seconds)
    # First the ones that ended by themselves: they are the cause.
    for rank in sorted(range(PROCESSES), key=killed.__contains__):
        if processes[rank].returncode:
            said = outputs[rank].read_text(encoding="utf-8", errors="replace").strip().splitlines()
            end = (
                f"was killed after {seconds} s"
                if rank in killed
                else f"ended with status {processes[rank].returncode}"
            )
            raise ConfigError(f"process {rank} {end}: {' / '.join(said[-3:])}")
    files = [directory / _RESULTS.format(rank=rank) for rank in range(PROCESSES)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def run_name(layout: str) -> str:
    """The directory of the run with a layout."""
    return f"run-{layout.partition(':')[0]}"


def _on(settings: dict[str, Any], device: str) -> dict[str, Any]:
    return settings | {"parallel": settings.get("parallel", {}) | {"device": device}}


def _wait(processes: list[subprocess.Popen[bytes]], seconds: float) -> set[int]:
    """Waits until all have ended. If one fails, or the time is over, kills the others and returns their ranks."""
    end, killed = time.monotonic() + seconds, set()
    try:
        while any(process.poll() is None for process in processes):
            if any(process.returncode for process in processes) or time.monotonic() > end:
                break
            time.sleep(0.05)
    finally:
        for rank, process in enumerate(processes):
            if process.poll() is None:
                process.kill()
                process.wait()
                killed.add(rank)
    return killed


def _losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [line for line in lines if "train/loss" in line]
    return [line[key] for line in logged for key in ("train/loss", "train/gradient_norm")]


def main(directory: Path) -> None:
    """What each process runs: collectives, then every layout over the same connection."""
    plan = json.loads((directory / "plan.json").read_text(encoding="utf-8"))
    worker = worker_from(os.environ)
    assert worker is not None, "started by `run_pair`"
    from erniekit.distributed.context import DistributedContext
    from erniekit.distributed.mesh import Communicator
    from erniekit.distributed.parallel_dims import ParallelDims
    from erniekit.doctor.collectives import all_reduce_speed, check_collectives
    from erniekit.runtime import configure
    from erniekit.train.console import make_console
    from erniekit.train.run import train_together
    from erniekit.train.run_context import RunContext

    device = configure(plan["device"], worker.threads, seed=0)
    connection = Communicator(worker, _SECONDS)
    group = connection.mesh(ParallelDims(PROCESSES)).world
    right, wrong = check_collectives(group)
    results = {"right": right, "wrong": wrong, "speed": all_reduce_speed(group, _SUMMED[device])}
    for settings in plan["runs"]:
        config = Config.model_validate(settings)
        mesh = connection.mesh(ParallelDims(PROCESSES, config.parallel.expert, config.parallel.context))
        context = RunContext(config, device, DistributedContext(mesh), make_console(mesh.rank))
        train_together(context, resume=False)
    (directory / _RESULTS.format(rank=worker.rank)).write_text(json.dumps(results), encoding="utf-8")
    connection.close()


if __name__ == "__main__":
    from erniekit.runtime import prepare_environment

    prepare_environment()
    main(Path(sys.argv[1]))
