"""Processes that take turns: one computes while the others wait. Standard library only: the peers import this too.

A side gets the number of steps of a turn on its standard input, and answers with one JSON line per turn. What else it
prints goes to its log.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_GIB = 1 << 20  # in KiB


class Step(NamedTuple):
    """One optimizer step: real tokens, without padding, and the mean loss."""

    tokens: int
    loss: float


@dataclass(frozen=True)
class Turn:
    """Some steps, data included. seconds: by the clock; cpu_seconds: of the side's processes; foreign: cores that other
    processes used meanwhile."""

    steps: list[Step]
    seconds: float
    cpu_seconds: float
    foreign: float

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return sum(step.tokens for step in self.steps)


class Turns:
    """The end of the side. Call `ready` once, then `step_done` after each step: it waits between turns, and returns
    False when no further turn comes."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._steps: list[Step] = []
        self._left = 0
        self._start = 0.0

    def ready(self) -> bool:
        """Everything is set up: wait for the first turn."""
        return self._next([])

    def step_done(self, tokens: int, loss: float) -> bool:
        """Count a step."""
        self._steps.append(Step(tokens, loss))
        self._left -= 1
        return self._left > 0 or self._next([time.perf_counter() - self._start])

    def _next(self, seconds: list[float]) -> bool:
        print(json.dumps({"steps": self._steps, "seconds": seconds}), file=self._answers, flush=True)
        self._steps, self._left = [], int(sys.stdin.readline() or 0)
        self._start = time.perf_counter()
        return self._left > 0


class SideError(Exception):
    """A side ended by itself."""


class Side:
    """The end of the bench: a process that waits for its turns. Its output goes to `log`."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name, self._log = name, log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command,
                env=os.environ | dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Until it is set up. Raises SideError."""
        self._read()

    def turn(self, steps: int) -> Turn:
        """Let it take some steps. Raises SideError."""
        assert self._process.stdin is not None
        busy, own = machine_seconds(), session_seconds(self._process.pid)
        print(steps, file=self._process.stdin, flush=True)
        answer = self._read()
        busy, own = machine_seconds() - busy, session_seconds(self._process.pid) - own
        (seconds,) = answer["seconds"]
        return Turn([Step(*step) for step in answer["steps"]], seconds, own, max(0.0, busy - own) / seconds)

    def peak_gib(self) -> float:
        """Peak memory of the process, and what its workers hold now."""
        first, *workers = session(self._process.pid)
        total = _kib(first, "status", "VmHWM:") + sum(_kib(w, "smaps_rollup", "Pss:") for w in workers)
        return total / _GIB

    def close(self) -> None:
        """End it, with its workers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise SideError(f"{self.name} ended with status {status}: {last[0]} (all of it: {self._log})")
        answer: dict[str, Any] = json.loads(line)
        return answer


def machine_seconds() -> float:
    """CPU seconds that all processes have used, and that the host has taken away."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split(None, 9)[1:9])
    return (user + nice + system + sum(rest)) / _TICKS


def session(leader: int) -> list[int]:
    """The processes of a session, the leader first."""
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    members = [process for process in found if process != leader and _stat(process)[3:4] == [str(leader)]]
    return [leader, *sorted(members)]


def session_seconds(leader: int) -> float:
    """CPU seconds of a session, ended children included."""
    return sum(sum(map(int, _stat(process)[11:15])) for process in session(leader)) / _TICKS


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat after the name; none where it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _kib(process: int, file: str, key: str) -> int:
    try:
        lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)
