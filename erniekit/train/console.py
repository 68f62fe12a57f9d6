"""Shows the progress of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from erniekit.display.progress import make_bar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 5.0


class Console(Protocol):
    """Shows the progress of a run. `log` may be called at any time."""

    def log(self, text: str) -> None:
        """Print a line."""

    def begin(self, done: int, total: int) -> None:
        """Training begins after `done` of `total` steps."""

    def step(self, done: int, scalars: Mapping[str, float]) -> None:
        """A step is logged: `done` steps are over. scalars: as in `MetricsWriter.write`."""

    def end(self) -> None:
        """Training is over, also after an error."""


class PlainConsole:
    """Lines on standard output: the first step, the last step, and at most one line per `PLAIN_SECONDS` between."""

    def __init__(self) -> None:
        self._total = 0
        self._began = self._last = 0.0
        self._first_step = 0

    def log(self, text: str) -> None:
        print(text, flush=True)

    def begin(self, done: int, total: int) -> None:
        self._first_step, self._total = done, total
        self._began = time.monotonic()

    def step(self, done: int, scalars: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._last and done < self._total and now - self._last < PLAIN_SECONDS:
            return
        self._last = now
        left = (now - self._began) / (done - self._first_step) * (self._total - done)
        self.log(f"step {done}/{self._total}  {describe_step(scalars)}  {clock(left)} left")

    def end(self) -> None:
        pass


class TerminalConsole:
    """A rich progress bar with the loss, the speed and the time left; lines of text go above it."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def log(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def begin(self, done: int, total: int) -> None:
        self._progress = make_bar(self._console)
        self._task = self._progress.add_task("step", total=total, completed=done, text="")
        self._progress.start()

    def step(self, done: int, scalars: Mapping[str, float]) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, text=describe_step(scalars))

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def make_console() -> Console:
    """A progress bar if standard output is a terminal, else plain lines."""
    return TerminalConsole() if sys.stdout.isatty() else PlainConsole()


def describe_step(scalars: Mapping[str, float]) -> str:
    """Loss and speed, such as "loss 0.6931  1,234 tokens/s  MFU 41.2%"."""
    loss = f"loss {scalars['train/loss']:.4f}" if "train/loss" in scalars else "skipped"
    text = f"{loss}  {scalars['train/tokens_per_second']:,.0f} tokens/s"
    return text + (f"  MFU {scalars['train/mfu']:.1%}" if "train/mfu" in scalars else "")


def clock(seconds: float) -> str:
    """A duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
