"""How far a long evaluation is: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from erniekit.interrupt import InterruptGuard

# (what is being done, how much of it, of how much)
OnProgress = Callable[[str, int, int], None]

_PLAIN_SECONDS = 5.0


@contextmanager
def show_progress() -> Iterator[OnProgress]:
    """A function to report progress to, shown on standard output until the block is left.

    Ctrl-C raises KeyboardInterrupt out of the next report, or at the end of the block.
    """
    with InterruptGuard(signals=[signal.SIGINT]) as guard, _display() as display:

        def report(what: str, done: int, total: int) -> None:
            guard.check()
            display(what, done, total)

        yield report
        guard.check()


@contextmanager
def _display() -> Iterator[OnProgress]:
    if not sys.stdout.isatty():
        yield _plain_lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, TextColumn("left")) as bar:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield report


def _plain_lines() -> OnProgress:
    """The end of each phase, and before it at most a line each `_PLAIN_SECONDS`."""
    began: dict[str, float] = {}
    last = 0.0

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if what not in began:
            began[what] = last = now
        if done < total and now - last < _PLAIN_SECONDS:
            return
        last = now
        spent = now - began[what]
        left = f", about {spent / done * (total - done):.0f} s left" if 0 < done < total else ""
        print(f"{what}: {done} of {total} samples after {spent:.1f} s{left}", flush=True)

    return report
