"""Ctrl-C and SIGTERM taken where a program can stop.

KeyboardInterrupt comes up wherever the program stands, and where that is a callback of a C library or a destructor
it is swallowed there, and the signal is lost.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any

SAME_REQUEST_SECONDS = 2.0
"""For so long after a signal the same one is the same request, where a run is to be saved: schedulers and `timeout`
signal every process, and launchers pass on what they get."""


class InterruptGuard:
    """While active, the first signal is only noted: a loop reads `requested` wherever it may stop.

    `tell` is called with the signal's name, in the middle of whatever runs. A second signal raises
    KeyboardInterrupt where the program stands, unless it is the first one again within `same_seconds`. Signals can
    only be taken in the main thread.
    """

    def __init__(
        self,
        tell: Callable[[str], None] | None = None,
        signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
        same_seconds: float = 0.0,
    ) -> None:
        self.requested: signal.Signals | None = None
        self._same_seconds = same_seconds
        self._since = 0.0
        self._tell = tell
        self._signals = signals
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> InterruptGuard:
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal has come."""
        if self.requested is not None:
            raise KeyboardInterrupt

    @property
    def exit_status(self) -> int:
        """The process's exit status: 0, or 128 + signal, as in shells (130 for Ctrl-C, 143 for SIGTERM)."""
        return 0 if self.requested is None else 128 + int(self.requested)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == self.requested and now - self._since < self._same_seconds:
            return
        self.check()
        self.requested, self._since = signal.Signals(number), now
        if self._tell is not None:
            self._tell(self.requested.name)
