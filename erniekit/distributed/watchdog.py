"""Tells which collective hangs and who did not come to it, and then ends the process.

Each process counts the collectives that it enters, group by group, and publishes the counts through the store
of the run every few seconds. A process that has waited too long compares its count with those of the others:
those that are behind did not arrive.
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

LOST = "lost the other ranks"
"""Begins every message of a process that ends because another one did: the cause is to be found elsewhere."""

_LONGEST_INTERVAL = 5.0
_ENDED, _REASON = "erniekit/ended", "erniekit/reason"


class PeerError(ErnieKitError):
    """Other processes of the run have ended, or are not where this one is."""


class Store(Protocol):
    """What is used of paddle's TCPStore."""

    def set(self, key: str, value: str) -> None:
        """Put a value."""

    def get(self, key: str) -> bytes:
        """The value; waits until there is one."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which starts at 0, and return it."""
        ...


class Task(Protocol):
    """What is used of the tasks that paddle's asynchronous collectives return."""

    def is_completed(self) -> bool:
        """Whether the device is done with it."""
        ...

    def wait(self) -> object:
        """Let what is computed from here on come after it."""
        ...


@dataclass(slots=True)
class Call:
    """One collective of one group: the `number`th, entered `since` (time.monotonic).

    task: set where the call only queued work on a device; then the collective is over when the task is.
    """

    name: str
    number: int
    since: float
    task: Task | None = None


class Calls:
    """The collectives that this process has entered in one group."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = tuple(ranks)
        self.last = Call("", 0, 0.0)
        self._open: deque[Call] = deque()

    def enter(self, name: str) -> Call:
        """Count a call; it is open until `leave`."""
        call = Call(name, self.last.number + 1, time.monotonic())
        self._open.append(call)
        self.last = call
        return call

    def leave(self, call: Call) -> None:
        """The call has returned; without a task it is over."""
        if call.task is None:
            self._open.pop()

    def oldest(self) -> Call | None:
        """The first call that is not over. The watchdog's thread asks, and forgets calls whose task is done."""
        while True:
            try:
                call = self._open[0]
            except IndexError:
                return None
            if call.task is None or not call.task.is_completed():
                return call
            self._open.popleft()

    def stand(self) -> list[Any]:
        """Number and name of the last call, whether one is open, and the seconds since the last was entered."""
        last = self.last
        return [last.number, last.name, self.oldest() is not None, time.monotonic() - last.since]

    @property
    def key(self) -> str:
        """The group's name in what is published."""
        return ",".join(map(str, self.ranks))


class Watched(Protocol):
    """A group of which the calls are counted; None: nobody else is in it."""

    @property
    def calls(self) -> Calls | None:
        """Of this process."""
        ...


@contextmanager
def waiting(name: str, group: Watched) -> Iterator[Call]:
    """Inside, this process waits for the other ranks of the group in the collective `name`."""
    assert group.calls is not None, "a group of one rank has nobody to wait for"
    call = group.calls.enter(name)
    try:
        yield call
    finally:
        group.calls.leave(call)


class Watchdog:
    """Watches the collectives of this process, from a thread of its own, once `start` is called.

    store: a connection that nothing else uses. timeout: seconds that a collective may wait for others. end: is
    called with what is to be told and the seconds to wait after that, and does not return.
    """

    def __init__(
        self, rank: int, store: Store, timeout: float, end: Callable[[str, float], None] | None = None
    ) -> None:
        self.rank, self.timeout = rank, timeout
        self._store = store
        self._end = end or end_process
        self._interval = min(timeout / 4, _LONGEST_INTERVAL)
        self._groups: list[Calls] = []
        self._busy: list[str] = []
        self._beat = 0
        self._heard: dict[int, tuple[int, float]] = {}
        self._told: set[tuple[str, int]] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def calls(self, ranks: Sequence[int]) -> Calls:
        """A new group to watch."""
        calls = Calls(ranks)
        self._groups.append(calls)
        return calls

    def start(self) -> None:
        """Publish for the first time and begin to watch. Every rank does, before the first collective."""
        self.publish()
        self._thread.start()

    def close(self) -> None:
        """Stop watching: from here on the store may go away."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Inside, this rank alone does something long: the others wait for it as long as it lives."""
        self._busy.append(what)
        try:
            yield
        finally:
            self._busy.pop()

    def publish(self) -> None:
        """Tell the others where this process stands."""
        self._beat += 1
        groups = {calls.key: calls.stand() for calls in self._groups}
        record = {"beat": self._beat, "busy": self._busy[-1] if self._busy else "", "groups": groups}
        self._store.set(_key(self.rank), json.dumps(record))

    def check(self) -> None:
        """Tell of a collective that has waited too long, and of another rank that has told so."""
        if self._store.add(_ENDED, 0):
            self._end(f"{LOST}: {self._store.get(_REASON).decode()}", 0.0)
            return
        for calls in list(self._groups):
            call = calls.oldest()
            if call is None or time.monotonic() - call.since < self.timeout / 2:
                continue
            others = {rank: self._read(rank) for rank in calls.ranks if rank != self.rank}
            if time.monotonic() - call.since > self.timeout:
                self._judge(calls, call, others)

    def _run(self) -> None:
        try:
            while not self._closing.wait(self._interval):
                self.publish()
                self.check()
        except Exception as error:
            # Every error of the store means the same: rank 0, which holds it, is gone.
            if not self._closing.is_set():
                reason = f"rank 0, which holds the store of the run, has ended ({_first_line(error)})"
                self._end(f"{LOST}: {reason}", 0.0)

    def _judge(self, calls: Calls, call: Call, others: dict[int, dict[str, Any]]) -> None:
        stands = {
            rank: record["groups"].get(calls.key, [0, "", False, 0.0]) for rank, record in others.items()
        }
        missing = [rank for rank, (number, *_) in stands.items() if number < call.number]
        if missing and all(others[rank]["busy"] and not self._silence(rank) for rank in missing):
            self._tell_once(
                calls, call, ", ".join(f"rank {rank}: {others[rank]['busy']}" for rank in missing)
            )
            return
        waited = time.monotonic() - call.since
        reason = (
            f"rank {self.rank} has waited {waited:.0f} s in {describe(call.name, call.number, calls.ranks)}"
        )
        if missing:
            reason += f"; did not arrive: {ranks_text(missing)}"
            details = [f"rank {rank} {self._where(rank, *stands[rank])}" for rank in missing]
        else:
            reason += "; every rank has entered it, so what connects them is stuck"
            details = [
                f"rank {rank} entered {name} as its call {number}"
                for rank, (number, name, *_) in stands.items()
                if number == call.number and name != call.name
            ]
        tell_ended(self._store, reason)
        # The store goes with rank 0: the others must have heard of it before.
        self._end("\n  ".join([reason, *details]), 0.0 if self.rank else 2 * self._interval)

    def _where(self, rank: int, number: int, name: str, inside: bool, age: float) -> str:
        if not number:
            text = "has entered no collective of this group"
        elif inside:
            text = f"is still in {name}, its call {number}, entered {age:.0f} s ago"
        else:
            text = f"entered {name}, its call {number}, {age:.0f} s ago and left it"
        silence = self._silence(rank)
        return text + (f"; nothing was heard of it for {silence:.0f} s" if silence else "")

    def _read(self, rank: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._store.get(_key(rank)))
        before = self._heard.get(rank)
        if before is None or before[0] != record["beat"]:
            self._heard[rank] = (record["beat"], time.monotonic())
        return record

    def _silence(self, rank: int) -> float:
        """Seconds since the rank published, as far as this one knows; 0 where that is not long."""
        seconds = time.monotonic() - self._heard[rank][1]
        # One long call into a library may keep a process that is well from publishing for a while.
        return seconds if seconds > max(3 * self._interval, self.timeout / 4) else 0.0

    def _tell_once(self, calls: Calls, call: Call, busy: str) -> None:
        if (calls.key, call.number) not in self._told:
            self._told.add((calls.key, call.number))
            _write(f"waiting in {describe(call.name, call.number, calls.ranks)} for {busy}\n")


def tell_ended(store: Store, reason: str) -> None:
    """End every process of the run that is still watched, with that reason."""
    store.set(_REASON, reason)
    store.add(_ENDED, 1)


def end_process(message: str, delay: float) -> None:
    """End this process after a delay, with `error: message` and where its main thread stands on standard error."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    where = "".join(traceback.format_stack(frame)) if frame is not None else ""
    _write(f"The main thread stands here:\n{where}error: {message}\n")
    time.sleep(delay)
    os._exit(1)


def describe(name: str, number: int, ranks: Sequence[int]) -> str:
    """A call in words."""
    return f"{name} (call {number} of {ranks_text(ranks)})"


def ranks_text(ranks: Sequence[int]) -> str:
    """ "rank 3", "ranks 0-3" or "ranks 0, 2, 5"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks))}"


def _write(text: str) -> None:
    # Not through sys.stderr: the main thread may hold its lock for ever.
    os.write(2, text.encode())


def _key(rank: int) -> str:
    return f"erniekit/rank/{rank}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
