"""Shows the progress of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from erniekit.display.progress import make_bar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_SECONDS = 5.0


class Console(Protocol):
    """Shows the progress of a run. `log` and `warn` may be called at any time."""

    def log(self, text: str) -> None:
        """Print a line about the run, which every process logs."""

    def warn(self, text: str) -> None:
        """Print a line that concerns this process alone, such as a sample that it skips."""

    def begin(self, done: int, total: int) -> None:
        """Training begins after `done` of `total` steps."""

    def step(self, done: int, scalars: Mapping[str, float], epoch: float) -> None:
        """Show the metrics after `done` steps and `epoch` epochs. scalars: as in `MetricsWriter.write`."""

    def end(self) -> None:
        """Training is over, also after an error."""


class _Times:
    """Decides when to print a line, and estimates the remaining time.

    The first and the last step are printed, and at most one line per `LINE_SECONDS` between them.
    """

    def __init__(self, done: int, total: int) -> None:
        self._first, self._total = done, total
        self._began, self._last = time.monotonic(), 0.0

    def is_due(self, done: int) -> bool:
        """Whether the step is printed."""
        now = time.monotonic()
        if self._last and done < self._total and now - self._last < LINE_SECONDS:
            return False
        self._last = now
        return True

    def line(self, done: int, scalars: Mapping[str, float], epoch: float) -> str:
        """A line about the step."""
        seconds = (time.monotonic() - self._began) / (done - self._first) * (self._total - done)
        return f"step {done}/{self._total}  {describe_step(scalars, epoch)}  {clock(seconds)} left"


class PlainConsole:
    """Lines on standard output."""

    def __init__(self) -> None:
        self._times = _Times(0, 0)

    def log(self, text: str) -> None:
        print(text, flush=True)

    def warn(self, text: str) -> None:
        self.log(text)

    def begin(self, done: int, total: int) -> None:
        self._times = _Times(done, total)

    def step(self, done: int, scalars: Mapping[str, float], epoch: float) -> None:
        if self._times.is_due(done):
            self.log(self._times.line(done, scalars, epoch))

    def end(self) -> None:
        pass


class TerminalConsole:
    """A rich progress bar with the loss and the time left; the same lines as elsewhere scroll above it."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._times = _Times(0, 0)

    def log(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.log(text)

    def begin(self, done: int, total: int) -> None:
        self._times = _Times(done, total)
        self._progress = make_bar(self._console, transient=True)
        self._task = self._progress.add_task("step", total=total, completed=done, text="")
        self._progress.start()

    def step(self, done: int, scalars: Mapping[str, float], epoch: float) -> None:
        if self._progress is None or self._task is None:
            return
        if self._times.is_due(done):
            self.log(self._times.line(done, scalars, epoch))
        self._progress.update(self._task, completed=done, text=_describe_loss(scalars))

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class RankConsole:
    """The console of another rank than 0, which prints the log of the run for all: they may share a terminal."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def log(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        print(f"rank {self._rank}: {text}", file=sys.stderr, flush=True)

    def begin(self, done: int, total: int) -> None:
        pass

    def step(self, done: int, scalars: Mapping[str, float], epoch: float) -> None:
        pass

    def end(self) -> None:
        pass


def make_console(rank: int = 0) -> Console:
    """For rank 0 a progress bar if standard output is a terminal, else plain lines."""
    if rank:
        return RankConsole(rank)
    return TerminalConsole() if sys.stdout.isatty() else PlainConsole()


def describe_step(scalars: Mapping[str, float], epoch: float) -> str:
    """Such as "loss 0.6931  lr 1.00e-05  grad norm 2.31  epoch 0.40  1,234 tokens/s  MFU 41.2%"."""
    parts = [_describe_loss(scalars)]
    if "rewards/accuracy" in scalars:
        parts += [f"accuracy {scalars['rewards/accuracy']:.1%}", f"margin {scalars['rewards/margin']:.3f}"]
    parts.append(f"lr {scalars['train/learning_rate']:.2e}")
    if "train/gradient_norm" in scalars:
        parts.append(f"grad norm {scalars['train/gradient_norm']:.3g}")
    parts += [f"epoch {epoch:.2f}", f"{scalars['train/tokens_per_second']:,.0f} tokens/s"]
    if "train/mfu" in scalars:
        parts.append(f"MFU {scalars['train/mfu']:.1%}")
    return "  ".join(parts)


def _describe_loss(scalars: Mapping[str, float]) -> str:
    return f"loss {scalars['train/loss']:.4f}" if "train/loss" in scalars else "skipped"


def clock(seconds: float) -> str:
    """A duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
