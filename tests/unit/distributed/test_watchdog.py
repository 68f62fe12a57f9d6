"""Which ranks are reported as missing, and when."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from erniekit.distributed import watchdog as module
from erniekit.distributed.watchdog import (
    PEER_LOST,
    CollectiveTracker,
    Watchdog,
    publish_failure,
    ranks_text,
    track_collective,
)


@dataclass
class Clock:
    """Replaces time.monotonic: tests must not depend on how fast the machine is."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class MemoryStore:
    """A store within this process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.counters: dict[str, int] = {}
        self.broken = False

    def set(self, key: str, value: str) -> None:
        if self.broken:
            raise ValueError("(InvalidArgument) TCP send error.\nDetails")
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def add(self, key: str, amount: int) -> int:
        self.counters[key] = self.counters.get(key, 0) + amount
        return self.counters[key]


class Ended(Exception):
    """Raised where the process would end."""


@dataclass
class Member:
    """One rank with its tracker of the group of all ranks."""

    watchdog: Watchdog
    tracker: CollectiveTracker


@dataclass
class FakeTask:
    done: bool = False

    def is_completed(self) -> bool:
        return self.done


def end(message: str, delay: float) -> None:
    raise Ended(message)


def members(count: int, store: MemoryStore, timeout: float = 0.2) -> list[Member]:
    found = []
    for rank in range(count):
        watchdog = Watchdog(rank, store, timeout, end)
        found.append(Member(watchdog, watchdog.track(range(count))))
        watchdog.publish()
    return found


@contextmanager
def inside(member: Member, name: str) -> Iterator[None]:
    with track_collective(name, member):
        member.watchdog.publish()
        yield
    member.watchdog.publish()


def verdict(member: Member) -> str:
    with pytest.raises(Ended) as found:
        member.watchdog.check()
    return str(found.value)


def test_missing_ranks_are_reported(clock: Clock) -> None:
    store = MemoryStore()
    first, second, third = members(3, store)
    for member in (first, second):
        with inside(member, "all_reduce"):
            pass
    with inside(first, "all_to_all"):
        first.watchdog.check()
        clock.now += 0.25
        text = verdict(first)
    assert text.startswith(
        "rank 0 has waited 0 s in all_to_all (call 2 of ranks 0-2); did not enter it: ranks 1, 2\n"
    )
    assert "rank 1 entered all_reduce, its call 1, 0 s ago and completed it" in text
    assert "rank 2 has entered no collective of this group" in text
    # The other ranks end with this reason, whatever they do.
    assert verdict(third) == f"{PEER_LOST}: {text.splitlines()[0]}"


def test_nothing_is_reported_in_time(clock: Clock) -> None:
    first, second = members(2, MemoryStore())
    for _ in range(3):
        with inside(first, "barrier"), inside(second, "barrier"):
            first.watchdog.check()
    clock.now += 0.25
    first.watchdog.check()
    second.watchdog.check()


def test_time_in_which_all_processes_were_stopped_does_not_count(clock: Clock) -> None:
    """A scheduler has suspended the job for an hour; the watchdog of each process notices a wait of an interval."""
    first, _ = members(2, MemoryStore(), timeout=40)
    with inside(first, "barrier"):
        clock.now += 10
        first.watchdog.note_wait(5)
        clock.now += 3605
        first.watchdog.note_wait(3605)
        first.watchdog.check()
        clock.now += 20
        first.watchdog.note_wait(12)
        first.watchdog.check()
        clock.now += 10
        assert verdict(first).startswith("rank 0 has waited 45 s in barrier (call 1 of ranks 0, 1)")


def test_all_ranks_have_entered_but_not_the_same_collective(clock: Clock) -> None:
    first, second = members(2, MemoryStore())
    with inside(first, "all_reduce"), inside(second, "all_gather"):
        clock.now += 0.25
        text = verdict(first)
    assert "every rank has entered it, so the network or the device is stuck" in text
    assert "rank 1 entered all_gather as its call 1" in text


def test_a_long_operation_is_waited_for_while_its_rank_is_alive(
    clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = members(2, MemoryStore())
    with second.watchdog.long_operation("saving"), inside(first, "barrier"):
        for _ in range(8):
            second.watchdog.publish()
            clock.now += 0.05
            first.watchdog.check()
        message = "waiting in barrier (call 1 of ranks 0, 1) for rank 1: saving\n"
        assert capfd.readouterr().err == message
        # Now it publishes no more.
        text = ""
        for _ in range(20):
            clock.now += 0.05
            try:
                first.watchdog.check()
            except Ended as error:
                text = str(error)
                break
    assert "did not enter it: rank 1\n" in text
    assert "its last heartbeat was 0 s ago" in text


def test_queued_collectives_are_pending_until_the_device_is_done(clock: Clock) -> None:
    first, _ = members(2, MemoryStore())
    tasks = [FakeTask(), FakeTask()]
    for task in tasks:
        with track_collective("all_to_all", first) as call:
            call.task = task
    assert first.tracker.oldest_pending() is not None
    clock.now += 0.25
    assert "in all_to_all (call 1 of ranks 0, 1)" in verdict(first)
    tasks[0].done = True
    oldest = first.tracker.oldest_pending()
    assert oldest is not None and oldest.number == 2
    tasks[1].done = True
    assert first.tracker.oldest_pending() is None
    with track_collective("barrier", first) as call:
        assert first.tracker.oldest_pending() is call
        assert call.number == 3
    assert first.tracker.oldest_pending() is None


def test_a_call_that_the_watchdog_has_dropped_may_still_return(clock: Clock) -> None:
    """On gloo a call has a task until it returns, and the watchdog may look in between."""
    first, _ = members(2, MemoryStore())
    with track_collective("all_reduce", first) as call:
        call.task = FakeTask()
        call.task.done = True
        assert first.tracker.oldest_pending() is None
        with track_collective("broadcast", first) as inner:
            call.task = None
            first.tracker.exit(call)
            assert first.tracker.oldest_pending() is inner
    assert first.tracker.oldest_pending() is None


def test_a_failure_of_another_machine_ends_this_rank() -> None:
    store = MemoryStore()
    first, _ = members(2, store)
    publish_failure(store, "rank 1 was killed by SIGKILL")
    assert verdict(first) == f"{PEER_LOST}: rank 1 was killed by SIGKILL"


def test_what_a_run_does_before_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    store = MemoryStore()
    first, second = members(2, store)
    publish_failure(store, "rank 1 was killed by SIGKILL")
    done: list[str] = []
    first.watchdog.before_abort = lambda: done.append("saved")
    assert verdict(first).startswith(PEER_LOST)
    assert done == ["saved"]

    def fail() -> None:
        raise OSError("the disk is full")

    second.watchdog.before_abort = fail
    assert verdict(second).startswith(PEER_LOST)
    assert "the disk is full" in capfd.readouterr().err


def run_thread(store: MemoryStore, close: bool) -> list[str]:
    messages: list[str] = []
    watchdog = Watchdog(1, store, 0.04, lambda message, delay: messages.append(message))
    watchdog.start()
    if close:
        watchdog.close()
    store.broken = True
    watchdog._thread.join()  # it ends with a message, or when it is closed
    watchdog.close()
    return messages


def test_the_store_is_gone() -> None:
    expected = f"{PEER_LOST}: rank 0, which serves the store of the run, has ended ((InvalidArgument) TCP send error.)"
    assert run_thread(MemoryStore(), close=False) == [expected]
    assert run_thread(MemoryStore(), close=True) == []


def test_the_published_record() -> None:
    store = MemoryStore()
    (first,) = members(1, store)
    with track_collective("barrier", first):
        first.watchdog.publish()
    record: dict[str, Any] = json.loads(store.values["erniekit/rank/0"])
    number, name, is_inside, age = record["groups"]["0"]
    assert (number, name, is_inside, record["heartbeat"], record["operation"]) == (1, "barrier", True, 2, "")
    assert 0 <= age < 1


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), ([0, 1], "ranks 0, 1"), ([4, 5, 6], "ranks 4-6"), ([0, 2, 4], "ranks 0, 2, 4")],
)
def test_ranks_text(ranks: list[int], text: str) -> None:
    assert ranks_text(ranks) == text
