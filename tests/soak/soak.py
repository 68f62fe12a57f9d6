"""Kills a run at random moments and resumes it, until it is done."""

from __future__ import annotations

import multiprocessing
import random
import time
from dataclasses import dataclass
from pathlib import Path

from erniekit.config import load_config

_POLL_SECONDS = 0.002
# A kill comes up to this long after a step: in the next steps, their checkpoints, or the end of the run.
_LONGEST_WAIT = 0.5


@dataclass(frozen=True)
class Soak:
    """kills: processes that were killed; in_save: those that were writing a checkpoint; attempts: of all processes."""

    kills: int
    in_save: int
    attempts: int


def kill_and_resume(config: Path, kills: int, seed: int) -> Soak:
    """Train with `config`, a file, killing the process up to `kills` times. The last process ends by itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["erniekit.train.run"])
    rng = random.Random(seed)
    run = Path(load_config(config).train.output_dir)
    killed = in_save = attempts = 0
    while True:
        attempts += 1
        process = context.Process(target=_train, args=(config,))
        before = _log_size(run)
        process.start()
        if killed < kills:
            while process.is_alive() and _log_size(run) <= before:
                time.sleep(_POLL_SECONDS)
            time.sleep(rng.uniform(0, _LONGEST_WAIT))
        if killed < kills and process.is_alive():
            process.kill()
            killed += 1
            in_save += any(run.glob(".checkpoint-*.tmp"))
            process.join()
            continue
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(
                f"attempt {attempts} ended with status {process.exitcode}, after {killed} kills"
            )
        return Soak(killed, in_save, attempts)


def _log_size(run: Path) -> int:
    file = run / "log.jsonl"
    return file.stat().st_size if file.exists() else 0


def _train(config: Path) -> None:
    from erniekit.train.run import run_training

    raise SystemExit(run_training(load_config(config), resume=True))
