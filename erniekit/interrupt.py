"""Ctrl-C and SIGTERM, handled where a program can stop.

Without a handler, KeyboardInterrupt is raised at any point of the program. In a callback of a C library or in a
destructor it is swallowed, and the signal is lost.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SAME_REQUEST_SECONDS = 2.0
"""A signal that repeats within this time is the same request to save a run: schedulers and `timeout` signal every
process, and launchers forward the signal that they receive as well."""


def handled(signals: Sequence[signal.Signals]) -> list[signal.Signals]:
    """These signals without SIGHUP where it is ignored: `nohup` keeps a program running when its terminal closes."""
    return [
        number for number in signals if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]


def is_same_request(number: int, before: int, seconds: float, same_seconds: float) -> bool:
    """Whether a signal `seconds` after the signal `before` asks for nothing more.

    SIGHUP never does: closing a terminal is no second request, and service managers send it together with SIGTERM.
    """
    return number == signal.SIGHUP or (before in (number, signal.SIGHUP) and seconds < same_seconds)


class InterruptGuard:
    """While active, the first signal is only recorded: a loop reads `requested` where it can stop.

    `on_signal` is called with the signal's name, from the signal handler. A second signal raises KeyboardInterrupt
    immediately, unless it is the same request: see `is_same_request`. Only for the main thread.
    """

    def __init__(
        self,
        on_signal: Callable[[str], None] | None = None,
        signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
        same_seconds: float = 0.0,
    ) -> None:
        self.requested: signal.Signals | None = None
        self._same_seconds = same_seconds
        self._received_at = 0.0
        self._on_signal = on_signal
        self._signals = signals
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> InterruptGuard:
        for number in handled(self._signals):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal was received."""
        if self.requested is not None:
            raise KeyboardInterrupt

    @property
    def exit_status(self) -> int:
        """The exit status of the process: 0, or 128 + the signal, as in shells: 130 for Ctrl-C, 143 for SIGTERM."""
        return 0 if self.requested is None else 128 + int(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is not None and is_same_request(
            number, self.requested, now - self._received_at, self._same_seconds
        ):
            return
        self.check()
        self.requested, self._received_at = signal.Signals(number), now
        if self._on_signal is not None:
            self._on_signal(self.requested.name)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise SystemExit with status 143 or 129, so that incomplete files are removed.

    Has no effect outside the main thread, where signals are not handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, leave) for number in handled((signal.SIGTERM, signal.SIGHUP))}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
