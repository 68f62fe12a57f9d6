"""Runs a function in several CPU processes at once, as `erniekit train --devices cpu:N` would start them.

They are forked from a server that has imported Paddle, which takes a process of its own some seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from erniekit.distributed.worker import LOCALHOST, Worker, worker_environment
from erniekit.runtime import configure

ROOT = Path(__file__).parents[2]
# Seconds: guards against hanging, on a machine that is as busy as may be. What goes well never waits for them.
HANGS = 1800.0
OTHERS_HANG = 300.0

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.distributed.preload"])


@dataclass
class Ended:
    """How one process has ended: its exit status and all that it wrote."""

    status: int
    output: str


def run(world: int, function: Callable[..., Any], *arguments: Any) -> list[dict[str, Any]]:
    """What `function(*arguments)` returns in each of `world` processes.

    The function stands at the top level of a module; what it takes and returns can be pickled. Paddle is on the CPU
    with one thread, and its seed is 0. Fails with what every rank wrote where one fails or hangs.
    """
    with TemporaryDirectory() as directory:
        ended = run_to_end(world, function, *arguments, results=Path(directory))
        if any(rank.status for rank in ended):
            written = [
                f"--- rank {rank} ended with {end.status}\n{end.output}" for rank, end in enumerate(ended)
            ]
            raise AssertionError(f"{function.__name__} on {world} processes\n" + "\n".join(written))
        return [pickle.loads((Path(directory) / f"{rank}").read_bytes()) for rank in range(world)]


def run_to_end(
    world: int,
    function: Callable[..., Any],
    *arguments: Any,
    results: Path | None = None,
) -> list[Ended]:
    """The same, for functions that may fail; -9 is the status of processes that hang."""
    master = (LOCALHOST, free_port())
    with TemporaryDirectory() as directory:
        logs = [Path(directory) / f"{rank}.log" for rank in range(world)]
        processes = []
        for rank, log in enumerate(logs):
            environment = os.environ | worker_environment(Worker(rank, world, rank, world, master), None)
            result = results / f"{rank}" if results is not None else None
            processes.append(
                _SERVER.Process(
                    target=_call, args=(function, arguments, environment, log, result), daemon=True
                )
            )
        with chdir(ROOT):
            for process in processes:
                process.start()
        _wait(processes)
        return [
            Ended(process.exitcode or 0, log.read_text(encoding="utf-8", errors="replace"))
            for process, log in zip(processes, logs, strict=True)
        ]


def _call(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    environment: dict[str, str],
    log: Path,
    result: Path | None,
) -> None:
    """In a process that the server has forked."""
    os.environ.clear()
    os.environ.update(environment)
    with log.open("wb") as file:
        for standard in (1, 2):
            os.dup2(file.fileno(), standard)
    configure("cpu", 1, 0)
    found = function(*arguments)
    if result is not None:
        result.write_bytes(pickle.dumps(found))


def _wait(processes: Sequence[BaseProcess]) -> None:
    """Until all have ended; those that are left long after one has failed are killed."""
    end = time.monotonic() + HANGS
    while any(process.is_alive() for process in processes) and time.monotonic() < end:
        if any(process.exitcode for process in processes):
            end = min(end, time.monotonic() + OTHERS_HANG)
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port
