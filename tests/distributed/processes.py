"""Runs a function in several CPU processes at once, as `erniekit train --devices cpu:N` would start them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from erniekit.distributed.worker import LOCALHOST, Worker, worker_environment

ROOT = Path(__file__).parents[2]
# Seconds: guards against hanging, on a machine that is as busy as may be. What goes well never waits for them.
HANGS = 1800.0
OTHERS_HANG = 300.0


@dataclass
class Ended:
    """What became of one process: its exit status and all that it wrote."""

    status: int
    output: str


def run(world: int, function: Callable[..., Any], *arguments: Any) -> list[dict[str, Any]]:
    """What `function(*arguments)` returns in each of `world` processes: a dictionary of arrays and JSON values.

    The function stands at the top level of a module; the arguments are JSON values. Paddle is on the CPU with one
    thread, and its seed is 0. Fails with what every rank wrote where one fails or hangs.
    """
    with TemporaryDirectory() as directory:
        ended = run_to_end(world, function, *arguments, results=Path(directory))
        if any(rank.status for rank in ended):
            told = [
                f"--- rank {rank} ended with {end.status}\n{end.output}" for rank, end in enumerate(ended)
            ]
            raise AssertionError(f"{function.__name__} on {world} processes\n" + "\n".join(told))
        return [_read(Path(directory), rank) for rank in range(world)]


def run_to_end(
    world: int,
    function: Callable[..., Any],
    *arguments: Any,
    results: Path | None = None,
) -> list[Ended]:
    """The same, for functions that may fail; -9 is the status of processes that hang."""
    master = (LOCALHOST, free_port())
    inner = [sys.executable, "-m", "tests.distributed.processes", function.__module__, function.__name__]
    command = [*inner, json.dumps(arguments), str(results or "")]
    with TemporaryDirectory() as directory:
        logs = [Path(directory) / f"{rank}.log" for rank in range(world)]
        processes = []
        for rank, log in enumerate(logs):
            environment = os.environ | worker_environment(Worker(rank, world, rank, world, master), None)
            environment |= {"GLOG_minloglevel": "2"}
            with log.open("wb") as file:
                processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
                    )
                )
        _wait(processes)
        return [
            Ended(process.returncode, log.read_text(encoding="utf-8", errors="replace"))
            for process, log in zip(processes, logs, strict=True)
        ]


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended; those that are left long after one has failed are killed."""
    end = time.monotonic() + HANGS
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        if any(process.poll() for process in processes):
            end = min(end, time.monotonic() + OTHERS_HANG)
        time.sleep(0.05)
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _write(directory: Path, rank: int, result: dict[str, Any]) -> None:
    arrays = {name: value for name, value in result.items() if isinstance(value, np.ndarray)}
    np.savez(directory / f"{rank}.npz", **arrays)
    rest = {name: value for name, value in result.items() if name not in arrays}
    (directory / f"{rank}.json").write_text(json.dumps(rest))


def _read(directory: Path, rank: int) -> dict[str, Any]:
    with np.load(directory / f"{rank}.npz") as arrays:
        return json.loads((directory / f"{rank}.json").read_text()) | dict(arrays)


def work(module: str, name: str, arguments: str, results: str) -> None:
    """In a process: call the function; the arguments are those of `run` in JSON, results a directory or nothing."""
    from importlib import import_module

    from erniekit.runtime import configure, prepare_environment

    prepare_environment()
    configure("cpu", 1, 0)
    result = getattr(import_module(module), name)(*json.loads(arguments))
    if results:
        _write(Path(results), int(os.environ["PADDLE_TRAINER_ID"]), result or {})


if __name__ == "__main__":
    work(*sys.argv[1:])
