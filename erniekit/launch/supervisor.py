"""Starts the processes of a run on this machine and supervises them until all have ended."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from erniekit.distributed.watchdog import PEER_LOST, ranks_text
from erniekit.interrupt import SAME_REQUEST_SECONDS, handled, is_same_request
from erniekit.launch.relay import Relay

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Exit statuses of a rank that did not fail: finished, or saved after a signal.
_CLEAN_STATUSES = (0, *(128 + number for number in _STOP_SIGNALS))
_POLL_SECONDS = 0.1
_RELAY_SECONDS = 2.0
_TAIL_LINES = 12
_KILLED = (
    "The system ends a process like this when the memory of the machine, or of its container or job, runs out (see "
    "dmesg). Fewer data.workers and checkpoint.background: false need less; memory/resident_gib in log.jsonl shows how "
    "it grew"
)
_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process to start: rank, command, complete environment, and the log file of its output."""

    rank: int
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts in seconds.

    settle: after a rank failed, for other failures at about the same time, which may be the cause. grace: for ranks
    that were sent SIGTERM. save: for ranks that write a checkpoint after another one has failed. linger: for the
    remaining ranks, after one has finished. same: a repeated signal within this time is the same request; longer than
    in the ranks, so that a forwarded signal is a new request there, too.
    """

    settle: float = 2.0
    grace: float = 10.0
    save: float = 1800.0
    linger: float = 30.0
    same: float = SAME_REQUEST_SECONDS + 0.5


DEFAULT_TIMEOUTS = Timeouts()


class Child:
    """A started process. show: whether its output also goes to this process's output."""

    def __init__(self, spec: ProcessSpec, show: bool) -> None:
        self.spec = spec
        self.status: int | None = None
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        self._log = spec.log.open("ab", buffering=0)
        self._start = self._log.tell()
        self._relays = [Relay(target, self._log) for target in (1, 2)] if show else []
        ends = [relay.end for relay in self._relays] or [self._log.fileno()] * 2
        # In a new session: the terminal sends Ctrl-C to this process alone, which forwards it.
        self._process = subprocess.Popen(
            spec.command,
            env=spec.environment,
            stdin=subprocess.DEVNULL,
            stdout=ends[0],
            stderr=ends[1],
            start_new_session=True,
            preexec_fn=_bind_to_parent(),
        )

    def start_relays(self) -> None:
        """Start relaying its output. Call after all processes have started: forking with threads is not safe."""
        for relay in self._relays:
            relay.start()

    def poll(self) -> bool:
        """Whether the process has ended since the last call; `status` is then its exit status, or minus the signal.

        Processes that it leaves behind are killed.
        """
        if self.status is not None:
            return False
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return False
        # Until the process is reaped, its pid and process group cannot be reused.
        self.signal(signal.SIGKILL)
        self.status = self._process.wait()
        return True

    def signal(self, number: int) -> None:
        """Send a signal: to its whole process group if it kills, stops or continues, others to the process alone."""
        send = os.killpg if number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT) else os.kill
        try:
            send(self._process.pid, number)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Relay the rest of its output, after its end."""
        for relay in self._relays:
            relay.finish(_RELAY_SECONDS)
        self._log.close()

    def last_lines(self) -> list[str]:
        """The end of its output: from its last error that is not about a lost peer, or else the last few lines."""
        with self.spec.log.open("rb") as file:
            file.seek(self._start)
            text = file.read().decode("utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [index for index, line in enumerate(lines) if line.startswith("error: ")]
        own = [index for index in errors if PEER_LOST not in lines[index]]
        return lines[(own or errors)[-1] :][:_TAIL_LINES] if errors else lines[-_TAIL_LINES // 2 :]

    def exit_status(self) -> int:
        """As shells report it: 128 + the number of the signal that killed the process."""
        status = self.status or 0
        return status if status >= 0 else 128 - status

    def ended_cleanly(self, *, signalled: bool) -> bool:
        """Whether it did not fail. signalled: it was sent a signal, which kills a process that is just starting."""
        return (self.exit_status() if signalled else self.status) in _CLEAN_STATUSES

    def exit_text(self) -> str:
        """How it ended, as a sentence."""
        if self.status is not None and self.status < 0:
            return f"rank {self.spec.rank} was killed by {signal.Signals(-self.status).name}"
        return f"rank {self.spec.rank} exited with status {self.status}"

    def lost_peer(self) -> bool:
        """Whether it only ended because another rank did."""
        lines = self.last_lines()
        errors = lines[:1] if lines and lines[0].startswith("error: ") else lines
        return any(PEER_LOST in line for line in errors)


class Supervisor:
    """Runs processes until all have ended; shows the output of the first one.

    resume_command: returns the command that continues the run, None while no checkpoint exists. on_failure: called
    with the reason as soon as the run is known to fail, to end it on other machines. is_saving: whether a rank writes a
    checkpoint.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        resume_command: Callable[[], str | None],
        on_failure: Callable[[str], None],
        timeouts: Timeouts,
        is_saving: Callable[[], bool] = lambda: False,
    ) -> None:
        self._specs, self._resume_command, self._is_saving = specs, resume_command, is_saving
        self._on_failure, self._timeouts = on_failure, timeouts
        self._children: list[Child] = []
        self._failures: list[Child] = []
        self._lingering: list[int] = []
        self._signals: list[int] = []
        self._forwarded = 0
        self._terminating = False
        self._settled_at = self._linger_until = self._kill_at = math.inf
        # When ranks that write a checkpoint are killed after all.
        self._save_until = -math.inf

    def run(self) -> int:
        """Start the processes, wait for them and report failures; returns the exit status of the run.

        0, or 128 + the number of a signal after which all ranks ended cleanly. Otherwise the exit status of the
        rank that failed, 1 if a signal killed it.
        """
        with _record_signals(self._signals, self._timeouts.same), _stop_together(self._alive):
            try:
                for spec in self._specs:
                    self._children.append(Child(spec, show=not self._children))
                for child in self._children:
                    child.start_relays()
                while self._alive():
                    time.sleep(_POLL_SECONDS)
                    self._collect()
                    self._forward_signals()
                    self._act()
            finally:
                for child in self._children:
                    child.close()
        return self._conclude()

    def _alive(self) -> list[Child]:
        return [child for child in self._children if child.status is None]

    def _collect(self) -> None:
        for child in self._alive():
            if not child.poll():
                continue
            now = time.monotonic()
            if self._terminating or self._forwarded > 1 or now >= self._kill_at:
                continue  # it was signalled to end, or another rank's end ended it
            if child.ended_cleanly(signalled=bool(self._forwarded)):
                self._linger_until = min(self._linger_until, now + self._timeouts.linger)
            else:
                self._failures.append(child)
                self._settled_at = min(self._settled_at, now + self._timeouts.settle)

    def _forward_signals(self) -> None:
        while self._forwarded < len(self._signals):
            number = self._signals[self._forwarded]
            self._forwarded += 1
            for child in self._alive():
                child.signal(number)
            if self._forwarded > 1:
                # The first signal lets the ranks save; after the second they have a moment to report that they do not.
                self._kill_no_later_than(
                    time.monotonic() + (self._timeouts.grace if self._forwarded == 2 else 0)
                )

    def _act(self) -> None:
        now = time.monotonic()
        if self._failures and not self._terminating and (now >= self._settled_at or not self._alive()):
            self._terminating = True
            self._on_failure(self._cause().exit_text())
            for child in self._alive():
                child.signal(signal.SIGTERM)
            self._kill_no_later_than(now + self._timeouts.grace)
            self._save_until = now + self._timeouts.save
        if now >= self._linger_until and not self._failures and self._kill_at == math.inf:
            self._lingering = [child.spec.rank for child in self._alive()]
            self._kill_no_later_than(now)
        is_waiting = self._forwarded < 2 and now < self._save_until and self._is_saving()
        if now >= self._kill_at and not is_waiting:
            for child in self._alive():
                child.signal(signal.SIGKILL)

    def _kill_no_later_than(self, when: float) -> None:
        self._kill_at = min(self._kill_at, when)

    def _cause(self) -> Child:
        """The rank that failed first, among ranks that ended at about the same time."""
        return next((child for child in self._failures if not child.lost_peer()), self._failures[0])

    def _conclude(self) -> int:
        if self._failures:
            cause, shown = self._cause(), self._children[0]
            others = "" if len(self._children) == 1 else ", so the other ranks were terminated"
            lines = cause.last_lines()
            if not lines:
                _print(f"error: {cause.exit_text()}{others}. Its log, {cause.spec.log}, is empty")
            elif lines == shown.last_lines():
                _print(
                    f"error: {cause.exit_text()}{others}. Its last lines are above; its log is {cause.spec.log}"
                )
            else:
                _print(f"error: {cause.exit_text()}{others}. The end of its log, {cause.spec.log}:")
                for line in lines:
                    _print(f"  {line}")
            if cause.status == -signal.SIGKILL:
                _print(_KILLED)
            command = self._resume_command()
            _print(f"Continue with:\n  {command}" if command else "Nothing was saved yet.")
            return max(1, cause.status or 0)
        if self._lingering:
            late, seconds = ranks_text(self._lingering), self._timeouts.linger
            _print(f"error: killed {late}, still running {seconds:g} s after another rank had finished")
            return 1
        if any(child.status for child in self._children):
            return (
                128 + self._signals[0]
                if self._signals
                else max(child.exit_status() for child in self._children)
            )
        return 0


@contextmanager
def _record_signals(received: list[int], same: float) -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM and SIGHUP are only recorded; those that are the same request are ignored."""
    received_at = -math.inf

    def record(number: int, frame: FrameType | None) -> None:
        nonlocal received_at
        now = time.monotonic()
        if received and is_same_request(number, received[-1], now - received_at, same):
            return
        received.append(number)
        received_at = now

    previous = {number: signal.signal(number, record) for number in handled(_STOP_SIGNALS)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _stop_together(alive: Callable[[], Sequence[Child]]) -> Iterator[None]:
    """Inside, Ctrl-Z stops the processes, too, until this one continues: in other sessions, they do not receive it."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopped = alive()
        for child in stopped:
            child.signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        for child in stopped:
            child.signal(signal.SIGCONT)

    previous = signal.getsignal(signal.SIGTSTP)
    if previous == signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, previous)


def _bind_to_parent() -> Callable[[], None] | None:
    """A preexec_fn that makes a new process die with this one, however this one ends; None except on Linux."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return bind


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
