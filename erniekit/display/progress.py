"""Progress of long work: bars with the time left on a terminal, lines of text elsewhere."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from erniekit.interrupt import InterruptGuard

# (name of the phase, units done, units in total)
OnProgress = Callable[[str, int, int], None]
_LINE_SECONDS = 5.0


def no_progress(phase: str, done: int, total: int) -> None:
    """Shows nothing."""


@contextmanager
def show_progress() -> Iterator[OnProgress]:
    """Progress in samples on standard output: a bar for each phase on a terminal, else `log_progress`.

    Ctrl-C raises KeyboardInterrupt out of the next report, or at the end of the block.
    """
    with InterruptGuard(signals=[signal.SIGINT]) as guard, _bar_or_lines() as show:

        def report(phase: str, done: int, total: int) -> None:
            guard.check()
            show(phase, done, total)

        yield report
        guard.check()


@contextmanager
def show_file_progress() -> Iterator[OnProgress]:
    """Progress in bytes on standard error, which leaves standard output free for a pipe; the bar is erased at the end.

    Shows nothing where standard error is not a terminal.
    """
    if not sys.stderr.isatty():
        yield no_progress
        return
    with make_bar(Console(stderr=True), unit="bytes", transient=True) as bar:
        yield _updates(bar)


def make_bar(
    console: Console, *, unit: Literal["items", "bytes"] = "items", transient: bool = False
) -> Progress:
    """A rich bar: description, count, bar, the task's `text` and the time left. Tasks are added with `text=""`.

    transient: the bar is erased when it stops.
    """
    return Progress(
        TextColumn("{task.description}"),
        DownloadColumn() if unit == "bytes" else MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=transient,
        expand=True,
    )


def log_progress(
    log: Callable[[str], None], unit: str, seconds: float, *, log_ends: bool = False
) -> OnProgress:
    """Logs lines such as "answers: 4 of 8 samples, about 6 s left", at most one each `seconds` seconds.

    unit: in the plural; "bytes" are shown as a percentage. log_ends: also log the end of each phase and its seconds.
    """
    began: dict[str, float] = {}
    last = 0.0

    def report(phase: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if phase not in began:
            began[phase] = last = now
        spent = now - began[phase]
        count = f"{done / total:.0%}" if unit == "bytes" else f"{done:,} of {total:,} {unit}"
        if done == total and log_ends:
            log(f"{phase}: {count} in {spent:.1f} s")
        elif 0 < done < total and now - last >= seconds:
            last = now
            log(f"{phase}: {count}, about {spent * (total - done) / done:,.0f} s left")

    return report


@contextmanager
def _bar_or_lines() -> Iterator[OnProgress]:
    if sys.stdout.isatty():
        with make_bar(Console()) as bar:
            yield _updates(bar)
    else:
        yield log_progress(lambda line: print(line, flush=True), "samples", _LINE_SECONDS, log_ends=True)


def _updates(bar: Progress) -> OnProgress:
    """A task of the bar for each phase."""
    tasks: dict[str, TaskID] = {}

    def report(phase: str, done: int, total: int) -> None:
        if phase not in tasks:
            tasks[phase] = bar.add_task(phase, total=total, text="")
        bar.update(tasks[phase], completed=done)

    return report
