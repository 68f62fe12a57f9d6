"""Standard output that may fail during a run: a closed terminal, a reader that has ended, a full disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class _ForgivingStream:
    """A text stream that drops what cannot be written instead of raising an error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text; characters that the stream's encoding lacks are escaped."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, RuntimeError):
            # RuntimeError: a signal's handler writes while the stream is being written to.
            return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with suppress(OSError, RuntimeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Context in which errors of writing to standard output and error are ignored: the run matters more than its lines.

    Lines are written again as soon as possible, such as when a disk has space again.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _ForgivingStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _flush_or_discard(stream)


def _flush_or_discard(stream: TextIO) -> None:
    """Flush a stream. Python flushes it again at its end, and an error there changes the exit status."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
