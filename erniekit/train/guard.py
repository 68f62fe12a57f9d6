"""Ctrl-C and SIGTERM end a run at a step's end, with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptGuard:
    """While active, the first SIGINT or SIGTERM is only noted: the loop reads `requested` after each step.

    `tell` is called with a line for the user. A second signal raises KeyboardInterrupt where the program
    stands. Signals can only be taken in the main thread.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.requested: signal.Signals | None = None
        self._tell = tell
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> InterruptGuard:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def exit_status(self) -> int:
        """The process's exit status: 0, or 128 + signal, as in shells (130 for Ctrl-C, 143 for SIGTERM)."""
        return 0 if self.requested is None else 128 + int(self.requested)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)
        self._tell(
            f"{self.requested.name}: finishing this step, then saving. Press Ctrl-C again to stop at once."
        )
