"""Starts the processes of a run on this machine and looks after them until none is left."""

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

from erniekit.distributed.watchdog import LOST, ranks_text
from erniekit.interrupt import SAME_REQUEST_SECONDS
from erniekit.launch.relay import Relay

# Exit statuses of a run that ended as it should: done, or saved after Ctrl-C or SIGTERM.
_IN_ORDER = (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)
_POLL_SECONDS = 0.1
_RELAY_SECONDS = 2.0
_TAIL_LINES = 12
_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


@dataclass(frozen=True, slots=True)
class Job:
    """A process to start: its rank in the run, its command, its whole environment, and the file of its output."""

    rank: int
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that are waited.

    settle: when a rank fails, for others that fail at the same time, among them perhaps the cause. grace: for
    ranks that were asked to end. linger: for the last rank, when one has ended in order. same: in which a signal that
    comes again is the same request; longer than in the ranks, so that what is passed on is a new one there, too.
    """

    settle: float = 2.0
    grace: float = 10.0
    linger: float = 30.0
    same: float = SAME_REQUEST_SECONDS + 0.5


PATIENCE = Patience()


class Child:
    """A process that was started. show: whether its output also goes to this process's."""

    def __init__(self, job: Job, show: bool) -> None:
        self.job = job
        self.status: int | None = None
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self._log = job.log.open("ab", buffering=0)
        self._start = self._log.tell()
        self._relays = [Relay(target, self._log) for target in (1, 2)] if show else []
        ends = [relay.end for relay in self._relays] or [self._log.fileno()] * 2
        # A session of its own: the terminal's Ctrl-C comes to this process alone, which passes it on.
        self._process = subprocess.Popen(
            job.command,
            env=job.environment,
            stdin=subprocess.DEVNULL,
            stdout=ends[0],
            stderr=ends[1],
            start_new_session=True,
            preexec_fn=_bind_to_parent(),
        )

    def attend(self) -> None:
        """Begin to pass its output on; after all processes have been started, since this starts threads."""
        for relay in self._relays:
            relay.start()

    def ended(self) -> bool:
        """Whether the process has just ended; then `status` is its exit status, or minus the signal.

        Whatever processes it has left behind are killed.
        """
        if self.status is not None:
            return False
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return False
        # Until the process is waited for, its number and that of its group cannot be given to another.
        self.signal(signal.SIGKILL)
        self.status = self._process.wait()
        return True

    def signal(self, number: int) -> None:
        """Send a signal: SIGKILL to all that it has started, others to itself."""
        send = os.killpg if number == signal.SIGKILL else os.kill
        try:
            send(self._process.pid, number)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """After its end: the rest of its output."""
        for relay in self._relays:
            relay.finish(_RELAY_SECONDS)
        self._log.close()

    def last_lines(self) -> list[str]:
        """The end of its output: from the last line that is an error of its own, or else the last few lines."""
        with self.job.log.open("rb") as file:
            file.seek(self._start)
            text = file.read().decode("utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [place for place, line in enumerate(lines) if line.startswith("error: ")]
        own = [place for place in errors if LOST not in lines[place]]
        return lines[(own or errors)[-1] :][:_TAIL_LINES] if errors else lines[-_TAIL_LINES // 2 :]

    def exit_status(self) -> int:
        """As in shells: 128 + the number of the signal that killed it."""
        status = self.status or 0
        return status if status >= 0 else 128 - status

    def in_order(self, *, signalled: bool) -> bool:
        """Whether it ended as it should. signalled: it was sent a signal, which it may have died of at its start."""
        return (self.exit_status() if signalled else self.status) in _IN_ORDER

    def ending(self) -> str:
        """How it ended, in words."""
        if self.status is not None and self.status < 0:
            return f"rank {self.job.rank} was killed by {signal.Signals(-self.status).name}"
        return f"rank {self.job.rank} ended with exit status {self.status}"

    def is_consequence(self) -> bool:
        """Whether it ended only because another rank did."""
        lines = self.last_lines()
        told = lines[:1] if lines and lines[0].startswith("error: ") else lines
        return any(LOST in line for line in told)


class Supervisor:
    """Runs processes until all have ended; the first one's output goes to this process's.

    again: the command that continues the run, None while there is nothing to continue. failed: is told why the
    run fails, as soon as it is known, for whoever else must end.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        again: Callable[[], str | None],
        failed: Callable[[str], None],
        patience: Patience,
    ) -> None:
        self._jobs, self._again, self._failed, self._patience = jobs, again, failed, patience
        self._children: list[Child] = []
        self._failures: list[Child] = []
        self._lingering: list[int] = []
        self._signals: list[int] = []
        self._forwarded = 0
        self._asked = False
        self._judge_at = self._linger_until = self._kill_at = math.inf

    def run(self) -> int:
        """Start, wait and tell; returns the exit status for the whole.

        0, or 128 + the number of a signal when all ranks ended in order after it. Otherwise the exit status of
        the rank that failed, 1 if a signal killed it.
        """
        with _taking_signals(self._signals, self._patience.same):
            try:
                for job in self._jobs:
                    self._children.append(Child(job, show=not self._children))
                for child in self._children:
                    child.attend()
                while self._alive():
                    time.sleep(_POLL_SECONDS)
                    self._collect()
                    self._pass_on_signals()
                    self._decide()
            finally:
                for child in self._children:
                    child.close()
        return self._conclude()

    def _alive(self) -> list[Child]:
        return [child for child in self._children if child.status is None]

    def _collect(self) -> None:
        for child in self._alive():
            if not child.ended():
                continue
            now = time.monotonic()
            if self._asked or self._forwarded > 1 or now >= self._kill_at:
                continue  # what it was told to do, or because another one did
            if child.in_order(signalled=bool(self._forwarded)):
                self._linger_until = min(self._linger_until, now + self._patience.linger)
            else:
                self._failures.append(child)
                self._judge_at = min(self._judge_at, now + self._patience.settle)

    def _pass_on_signals(self) -> None:
        while self._forwarded < len(self._signals):
            number = self._signals[self._forwarded]
            self._forwarded += 1
            for child in self._alive():
                child.signal(number)
            if self._forwarded > 1:
                # The first one asked them to save; after the second they may say that they do not.
                self._kill_by(time.monotonic() + (self._patience.grace if self._forwarded == 2 else 0))

    def _decide(self) -> None:
        now = time.monotonic()
        if self._failures and not self._asked and (now >= self._judge_at or not self._alive()):
            self._asked = True
            self._failed(self._cause().ending())
            for child in self._alive():
                child.signal(signal.SIGTERM)
            self._kill_by(now + self._patience.grace)
        if now >= self._linger_until and not self._failures and self._kill_at == math.inf:
            self._lingering = [child.job.rank for child in self._alive()]
            self._kill_by(now)
        if now >= self._kill_at:
            for child in self._alive():
                child.signal(signal.SIGKILL)

    def _kill_by(self, when: float) -> None:
        self._kill_at = min(self._kill_at, when)

    def _cause(self) -> Child:
        """The rank that failed by itself, of those that ended at about the same time."""
        return next((child for child in self._failures if not child.is_consequence()), self._failures[0])

    def _conclude(self) -> int:
        if self._failures:
            cause = self._cause()
            others = "" if len(self._children) == 1 else "; the other ranks were ended"
            _tell(f"error: {cause.ending()}{others}. The end of its log, {cause.job.log}:")
            for line in cause.last_lines():
                _tell(f"  {line}")
            again = self._again()
            _tell(f"Continue with:\n  {again}" if again else "Nothing was saved yet.")
            return max(1, cause.status or 0)
        if self._lingering:
            late, seconds = ranks_text(self._lingering), self._patience.linger
            _tell(f"error: killed {late}, which had not ended {seconds:g} s after another rank did")
            return 1
        if any(child.status for child in self._children):
            return (
                128 + self._signals[0]
                if self._signals
                else max(child.exit_status() for child in self._children)
            )
        return 0


@contextmanager
def _taking_signals(received: list[int], same: float) -> Iterator[None]:
    """Ctrl-C and SIGTERM are only noted, inside; not again within `same` seconds of the same one."""
    since = -math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal since
        now = time.monotonic()
        if received and number == received[-1] and now - since < same:
            return
        received.append(number)
        since = now

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bind_to_parent() -> Callable[[], None] | None:
    """What a new process does first, so that it dies with this one, however this one ends; Linux only."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return bind


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
