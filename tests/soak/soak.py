"""Kills a run at random moments and resumes it, until it is done."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from erniekit.config import load_config

_POLL_SECONDS = 0.002
# A kill comes up to this long after a step: in the next steps, their checkpoints, or the end of the run.
_LONGEST_WAIT = 0.5


@dataclass(frozen=True)
class Soak:
    """kills: of runs; in_save: those while a checkpoint was written; attempts: starts of the run."""

    kills: int
    in_save: int
    attempts: int


def kill_and_resume(config: Path, kills: int, seed: int, processes: int = 1) -> Soak:
    """Train with `config`, a file, killing the run up to `kills` times. The last start ends by itself."""
    rng = random.Random(seed)
    run = Path(load_config(config).train.output_dir)
    killed = in_save = attempts = 0
    while True:
        attempts += 1
        before = _log_size(run)
        started: _Run = _OneProcess(config) if processes == 1 else _Launched(config, processes)
        if killed < kills:
            while started.is_alive() and _log_size(run) <= before:
                time.sleep(_POLL_SECONDS)
            time.sleep(rng.uniform(0, _LONGEST_WAIT))
        if killed < kills and started.is_alive():
            in_save += any(run.glob(".checkpoint-*.tmp"))
            started.kill(rng)
            killed += 1
            started.wait()
            continue
        status = started.wait()
        if status != 0:
            raise RuntimeError(f"attempt {attempts} ended with status {status}, after {killed} kills")
        return Soak(killed, in_save, attempts)


def train(config: Path, processes: int) -> None:
    """The run that nobody kills."""
    assert kill_and_resume(config, 0, 0, processes) == Soak(0, 0, 1)


class _Run(Protocol):
    """A run that has been started; it continues from the newest checkpoint."""

    def is_alive(self) -> bool: ...

    def kill(self, rng: random.Random) -> None: ...

    def wait(self) -> int | None:
        """The status, once the run has ended."""


class _OneProcess:
    def __init__(self, config: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["erniekit.train.run"])
        self._process = context.Process(target=_train, args=(config,))
        self._process.start()

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self, rng: random.Random) -> None:
        self._process.kill()

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode


class _Launched:
    """The command, which starts a process for each rank."""

    def __init__(self, config: Path, processes: int) -> None:
        command = [sys.executable, "-m", "erniekit", "train", str(config), "--resume"]
        with config.with_suffix(".out").open("a") as out:
            self._launcher = subprocess.Popen(
                [*command, "--devices", f"cpu:{processes}"], stdout=out, stderr=out
            )

    def is_alive(self) -> bool:
        return self._launcher.poll() is None

    def kill(self, rng: random.Random) -> None:
        """Kill one rank, or all processes."""
        pid = self._launcher.pid
        ranks = [int(rank) for rank in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        is_one = bool(ranks) and rng.random() < 0.5
        for killed in [rng.choice(ranks)] if is_one else [pid, *ranks]:
            with suppress(ProcessLookupError):
                os.kill(killed, signal.SIGKILL)

    def wait(self) -> int | None:
        return self._launcher.wait()


def _log_size(run: Path) -> int:
    file = run / "log.jsonl"
    return file.stat().st_size if file.exists() else 0


def _train(config: Path) -> None:
    from erniekit.train.run import run_training

    raise SystemExit(run_training(load_config(config), resume=True))
