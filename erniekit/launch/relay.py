"""Relays the output of a process to the terminal and to a log."""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from typing import BinaryIO

_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_CHUNK = 1 << 16


class Relay:
    """One output stream of a process: what it writes to `end` goes to `target` (a file descriptor) and to `log`.

    If the target is a terminal, the process sees a terminal of the same size, so that progress bars work.
    """

    def __init__(self, target: int, log: BinaryIO) -> None:
        self._target, self._log = target, log
        self._source, self.end = _terminal_like(target) if os.isatty(target) else os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start relaying, once the process has inherited its end."""
        os.close(self.end)
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Relay the rest, for at most `seconds`: an orphaned process may keep the other end open."""
        self._thread.join(seconds)

    def _run(self) -> None:
        lines = LogLines(self._log)
        showing = True
        while data := self._read():
            # A full disk: the process waits for ever if nobody reads what it writes.
            with suppress(OSError):
                lines.feed(data)
            showing = showing and self._show(data)
        with suppress(OSError):
            lines.close()

    def _read(self) -> bytes:
        try:
            return os.read(self._source, _CHUNK)
        except OSError:  # end of file on a terminal
            return b""

    def _show(self, data: bytes) -> bool:
        """Write to the target; False once nobody reads it."""
        try:
            while data:
                data = data[os.write(self._target, data) :]
        except OSError:
            return False
        return True


class LogLines:
    """Writes complete lines to a log in their final state, without text that was overwritten on the terminal."""

    def __init__(self, log: BinaryIO) -> None:
        self._log = log
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take more output, split at any byte. Raises OSError where the log cannot be written; later output may be."""
        *lines, rest = (self._rest + data).split(b"\n")
        # A progress bar writes no newline for hours. A carriage return at the very end may belong to a newline.
        self._rest = rest[rest[:-1].rfind(b"\r") + 1 :]
        for line in lines:
            self._log.write(_final(line) + b"\n")

    def close(self) -> None:
        """Write a last line without a newline."""
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
