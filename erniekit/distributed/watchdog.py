"""Reports which collective hangs and which ranks did not enter it, and then ends the process.

Each process counts the collectives that it enters, group by group, and publishes the counts through the TCP store
of the run every few seconds. After a timeout a process compares its count with the counts of the other ranks: the
ranks that are behind did not enter the collective.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from erniekit.errors import ErnieKitError

PEER_LOST = "lost the other ranks"
"""Starts every message of a process that ends because another one did, so that the cause is searched elsewhere."""

_LONGEST_INTERVAL = 5.0
# A wait of so many intervals was none: the process was stopped.
_PAUSE_INTERVALS = 3.0
_FAILED, _REASON = "erniekit/failed", "erniekit/reason"


class PeerError(ErnieKitError):
    """Other processes of the run have ended, or do not run the same collectives."""


class Store(Protocol):
    """The part of Paddle's TCPStore that is used."""

    def set(self, key: str, value: str) -> None:
        """Set a value."""

    def get(self, key: str) -> bytes:
        """The value; blocks until it is set."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which starts at 0, and return it."""
        ...


class Task(Protocol):
    """The part of the tasks of Paddle's asynchronous collectives that is used."""

    def is_completed(self) -> bool:
        """Whether the device has finished it."""
        ...

    def wait(self) -> object:
        """Order all computation that is queued from here on after it."""
        ...


@dataclass(slots=True)
class Collective:
    """One collective of one group: call `number`, entered at `entered_at` (time.monotonic).

    task: set if the call only queued work on a device; the collective is then complete when the task is.
    """

    name: str
    number: int
    entered_at: float
    task: Task | None = None


class CollectiveTracker:
    """Counts the collectives that this process enters in one group."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = tuple(ranks)
        self.last = Collective("", 0, 0.0)
        self._pending: deque[Collective] = deque()
        # The watchdog's thread drops completed calls.
        self._lock = threading.Lock()

    def enter(self, name: str) -> Collective:
        """Count a call; it is pending until `exit`."""
        call = Collective(name, self.last.number + 1, time.monotonic())
        with self._lock:
            self._pending.append(call)
        self.last = call
        return call

    def exit(self, call: Collective) -> None:
        """Record that the call has returned; without a task it is complete."""
        with self._lock:
            # On gloo the task was set until now, and the watchdog may have seen that it is complete.
            if call.task is None and self._pending and self._pending[-1] is call:
                self._pending.pop()

    def oldest_pending(self) -> Collective | None:
        """The first call that is not complete. Drops calls with completed tasks; only for the watchdog's thread."""
        with self._lock:
            while self._pending:
                call = self._pending[0]
                if call.task is None or not call.task.is_completed():
                    return call
                self._pending.popleft()
        return None

    def status(self) -> list[Any]:
        """Number and name of the last call, whether a call is pending, and the seconds since the last was entered."""
        last = self.last
        return [last.number, last.name, self.oldest_pending() is not None, time.monotonic() - last.entered_at]

    @property
    def key(self) -> str:
        """The group's name in the published record."""
        return ",".join(map(str, self.ranks))


class TrackedGroup(Protocol):
    """A group with a tracker for this process; None for a group of one rank."""

    @property
    def tracker(self) -> CollectiveTracker | None:
        """Counts the collectives of this process."""
        ...


@contextmanager
def track_collective(name: str, group: TrackedGroup) -> Iterator[Collective]:
    """Inside, this process is in the collective `name` of the group and may wait for the other ranks."""
    assert group.tracker is not None, "a group of one rank has no collectives"
    call = group.tracker.enter(name)
    try:
        yield call
    finally:
        group.tracker.exit(call)


class Watchdog:
    """Watches the collectives of this process from a thread, once `start` is called.

    store: a connection for the watchdog alone. timeout: seconds that a collective may wait for other ranks. abort:
    called with an error message and the seconds to wait before the end of the process; does not return.
    before_abort: called before that, in the watchdog's thread.
    """

    def __init__(
        self, rank: int, store: Store, timeout: float, abort: Callable[[str, float], None] | None = None
    ) -> None:
        self.rank, self.timeout = rank, timeout
        self._store = store
        self._abort_process = abort or abort_process
        self.before_abort: Callable[[], None] = _nothing
        self._interval = min(timeout / 4, _LONGEST_INTERVAL)
        self._trackers: list[CollectiveTracker] = []
        self._operations: list[str] = []
        self._heartbeat = 0
        self._last_heartbeats: dict[int, tuple[int, float]] = {}
        self._reported: set[tuple[str, int]] = set()
        # The end and the length of times in which this process was stopped.
        self._pauses: list[tuple[float, float]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def track(self, ranks: Sequence[int]) -> CollectiveTracker:
        """A tracker of a new group of these ranks."""
        tracker = CollectiveTracker(ranks)
        self._trackers.append(tracker)
        return tracker

    def start(self) -> None:
        """Publish for the first time and start watching. Every rank calls this before the first collective."""
        self.publish()
        self._thread.start()

    def close(self) -> None:
        """Stop watching. The store may close after this."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    @contextmanager
    def long_operation(self, name: str) -> Iterator[None]:
        """Inside, the timeouts of the other ranks do not apply to this one, as long as it is alive."""
        self._operations.append(name)
        try:
            yield
        finally:
            self._operations.pop()

    def publish(self) -> None:
        """Publish a heartbeat and the state of this process."""
        self._heartbeat += 1
        record = {
            "heartbeat": self._heartbeat,
            "operation": self._operations[-1] if self._operations else "",
            "groups": {tracker.key: tracker.status() for tracker in self._trackers},
        }
        self._store.set(_key(self.rank), json.dumps(record))

    def check(self) -> None:
        """Abort if a collective has waited too long, or if another rank has published a failure."""
        if self._store.add(_FAILED, 0):
            self._abort(f"{PEER_LOST}: {self._store.get(_REASON).decode()}", 0.0)
            return
        for tracker in list(self._trackers):
            call = tracker.oldest_pending()
            if call is None or self._seconds_since(call.entered_at) < self.timeout / 2:
                continue
            others = {rank: self._read(rank) for rank in tracker.ranks if rank != self.rank}
            if self._seconds_since(call.entered_at) > self.timeout:
                self._handle_timeout(tracker, call, others)

    def note_wait(self, seconds: float) -> None:
        """Note how long a wait of one interval took. A much longer one means that all processes were stopped.

        Schedulers suspend jobs (SIGSTOP), containers are paused, and machines sleep. Nobody was late then.
        """
        if seconds > _PAUSE_INTERVALS * self._interval:
            self._pauses.append((time.monotonic(), seconds - self._interval))

    def _seconds_since(self, then: float) -> float:
        """Seconds since a time, without those in which this process was stopped."""
        return time.monotonic() - then - sum(seconds for ended, seconds in self._pauses if ended > then)

    def _run(self) -> None:
        try:
            started = time.monotonic()
            while not self._closing.wait(self._interval):
                self.note_wait(time.monotonic() - started)
                self.publish()
                self.check()
                started = time.monotonic()
        except Exception as error:
            # Any error of the store means that rank 0, which serves it, has ended.
            if not self._closing.is_set():
                reason = f"rank 0, which serves the store of the run, has ended ({_first_line(error)})"
                self._abort(f"{PEER_LOST}: {reason}", 0.0)

    def _abort(self, message: str, delay: float) -> None:
        try:
            self.before_abort()
        except Exception as error:
            _write(f"{_first_line(error)}\n")
        self._abort_process(message, delay)

    def _handle_timeout(
        self, tracker: CollectiveTracker, call: Collective, others: dict[int, dict[str, Any]]
    ) -> None:
        statuses = {
            rank: record["groups"].get(tracker.key, [0, "", False, 0.0]) for rank, record in others.items()
        }
        missing = [rank for rank, (number, *_) in statuses.items() if number < call.number]
        if missing and all(others[rank]["operation"] and not self._silent_seconds(rank) for rank in missing):
            operations = ", ".join(f"rank {rank}: {others[rank]['operation']}" for rank in missing)
            self._report_wait_once(tracker, call, operations)
            return
        waited = self._seconds_since(call.entered_at)
        reason = f"rank {self.rank} has waited {waited:.0f} s in {call_text(call.name, call.number, tracker.ranks)}"
        if missing:
            reason += f"; did not enter it: {ranks_text(missing)}"
            details = [f"rank {rank} {self._status_text(rank, *statuses[rank])}" for rank in missing]
        else:
            reason += "; every rank has entered it, so the network or the device is stuck"
            details = [
                f"rank {rank} entered {name} as its call {number}"
                for rank, (number, name, *_) in statuses.items()
                if number == call.number and name != call.name
            ]
        publish_failure(self._store, reason)
        # The store ends with rank 0; the other ranks must read the reason before.
        self._abort("\n  ".join([reason, *details]), 0.0 if self.rank else 2 * self._interval)

    def _status_text(self, rank: int, number: int, name: str, pending: bool, age: float) -> str:
        if not number:
            text = "has entered no collective of this group"
        elif pending:
            text = f"is still in {name}, its call {number}, entered {age:.0f} s ago"
        else:
            text = f"entered {name}, its call {number}, {age:.0f} s ago and completed it"
        silent = self._silent_seconds(rank)
        return text + (f"; its last heartbeat was {silent:.0f} s ago" if silent else "")

    def _read(self, rank: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._store.get(_key(rank)))
        last = self._last_heartbeats.get(rank)
        if last is None or last[0] != record["heartbeat"]:
            self._last_heartbeats[rank] = (record["heartbeat"], time.monotonic())
        return record

    def _silent_seconds(self, rank: int) -> float:
        """Seconds since this rank first read the last heartbeat of `rank`; 0 for a short time."""
        seconds = self._seconds_since(self._last_heartbeats[rank][1])
        # A long call into a library may keep a healthy process from publishing for a while.
        return seconds if seconds > max(3 * self._interval, self.timeout / 4) else 0.0

    def _report_wait_once(self, tracker: CollectiveTracker, call: Collective, operations: str) -> None:
        if (tracker.key, call.number) not in self._reported:
            self._reported.add((tracker.key, call.number))
            _write(f"waiting in {call_text(call.name, call.number, tracker.ranks)} for {operations}\n")


def publish_failure(store: Store, reason: str) -> None:
    """Make the watchdog of every other process of the run end it with this reason."""
    store.set(_REASON, reason)
    store.add(_FAILED, 1)


def abort_process(message: str, delay: float) -> None:
    """Print the stack of the main thread and `error: message` to standard error, and end this process after a delay."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
    _write(f"Stack of the main thread:\n{stack}error: {message}\n")
    time.sleep(delay)
    os._exit(1)


def call_text(name: str, number: int, ranks: Sequence[int]) -> str:
    """One collective of a group, such as "all_reduce (call 3 of ranks 0-7)"."""
    return f"{name} (call {number} of {ranks_text(ranks)})"


def ranks_text(ranks: Sequence[int]) -> str:
    """ "rank 3", "ranks 0-3" or "ranks 0, 2, 5"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks))}"


def _write(text: str) -> None:
    # Not through sys.stderr: the main thread may hold its lock forever.
    os.write(2, text.encode())


def _key(rank: int) -> str:
    return f"erniekit/rank/{rank}"


def _nothing() -> None:
    """What is done before an abort unless a run sets something."""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
