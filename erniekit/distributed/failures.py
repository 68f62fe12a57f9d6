"""Python exceptions that were raised inside a backward pass."""

from __future__ import annotations

import re

from erniekit.distributed.watchdog import PeerError

# Paddle turns an exception that Python code raises in a backward pass into an OSError with the exception's text.
_PEER = re.compile(r"PeerError: (.+)")
_INTERRUPT = re.compile(r"\bKeyboardInterrupt\b")


def original_error(error: OSError) -> BaseException:
    """The KeyboardInterrupt or PeerError that Paddle turned into this error; otherwise the error itself."""
    text = str(error)
    if _INTERRUPT.search(text):
        return KeyboardInterrupt()
    lost = _PEER.search(text)
    return error if lost is None else PeerError(lost[1].strip())
