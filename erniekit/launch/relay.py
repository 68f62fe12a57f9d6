"""Passes the output of a process on to the terminal, and keeps it in a log."""

from __future__ import annotations

import os
import re
import threading
from typing import BinaryIO

_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_CHUNK = 1 << 16


class Relay:
    """One stream of a process: what it writes to `end` goes to `target` (a file descriptor) and into `log`.

    Where the target is a terminal the process sees a terminal, too, of the same size: a progress bar stays one.
    """

    def __init__(self, target: int, log: BinaryIO) -> None:
        self._target, self._log = target, log
        self._source, self.end = _terminal_like(target) if os.isatty(target) else os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin, once the process has its end."""
        os.close(self.end)
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Wait for what is left, not for ever: a process that was left behind may hold the other end open."""
        self._thread.join(seconds)

    def _run(self) -> None:
        lines = LogLines(self._log)
        shown = True
        while data := self._read():
            lines.feed(data)
            shown = shown and self._show(data)
        lines.close()

    def _read(self) -> bytes:
        try:
            return os.read(self._source, _CHUNK)
        except OSError:  # how a terminal ends
            return b""

    def _show(self, data: bytes) -> bool:
        """Whether somebody still reads what is shown."""
        try:
            while data:
                data = data[os.write(self._target, data) :]
        except OSError:
            return False
        return True


class LogLines:
    """Writes whole lines to a log, as they stood at their end: what was drawn over is left out."""

    def __init__(self, log: BinaryIO) -> None:
        self._log = log
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """More output, cut anywhere."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._log.write(_final(line) + b"\n")
        # A progress bar draws for hours without an end of line; a carriage return at the very end may belong to one.
        self._rest = rest[rest[:-1].rfind(b"\r") + 1 :]

    def close(self) -> None:
        """A last line without an end."""
        if rest := _final(self._rest):
            self._log.write(rest + b"\n")


def _final(line: bytes) -> bytes:
    return _CONTROL.sub(b"", line.rstrip(b"\r").rpartition(b"\r")[2])


def _terminal_like(target: int) -> tuple[int, int]:
    import pty
    import termios

    source, end = pty.openpty()
    termios.tcsetwinsize(end, termios.tcgetwinsize(target))
    return source, end
