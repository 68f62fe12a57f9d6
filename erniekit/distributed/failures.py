"""What went wrong in a backward pass, which Paddle tells in words of its own."""

from __future__ import annotations

import re

from erniekit.distributed.watchdog import PeerError

# An error that is raised in Python inside of a backward pass comes out of it as an OSError whose text has its name.
_PEER = re.compile(r"PeerError: (.+)")
_INTERRUPT = re.compile(r"\bKeyboardInterrupt\b")


def original_error(error: OSError) -> BaseException:
    """The interrupt or the loss of another process behind an error of the backward pass; else the error itself."""
    text = str(error)
    if _INTERRUPT.search(text):
        return KeyboardInterrupt()
    lost = _PEER.search(text)
    return error if lost is None else PeerError(lost[1].strip())
