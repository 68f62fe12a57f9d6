"""Finds the cause of an error: exceptions inside a backward pass, and errors of other processes."""

from __future__ import annotations

import re

from erniekit.distributed.watchdog import PEER_LOST, PeerError
from erniekit.errors import ErnieKitError

# Paddle converts an exception of Python code in a backward pass into an OSError with the exception's text.
_PEER = re.compile(r"PeerError: (.+)")
_OF_ALL = "_is_of_all_processes"
_INTERRUPT = re.compile(r"\bKeyboardInterrupt\b")


def error_of_all(error: ErnieKitError | None) -> ErnieKitError:
    """The error to raise on this process when all processes raise an error together.

    error: of this process; None: another one has failed.
    """
    found = error or PeerError(f"{PEER_LOST}: another rank has failed")
    vars(found)[_OF_ALL] = True
    return found


def is_of_all(error: BaseException) -> bool:
    """Whether all processes raise an error together, so that they can still communicate."""
    return _OF_ALL in vars(error)


def original_error(error: OSError) -> BaseException:
    """The KeyboardInterrupt or PeerError that Paddle turned into this error; otherwise the error itself."""
    text = str(error)
    if _INTERRUPT.search(text):
        return KeyboardInterrupt()
    lost = _PEER.search(text)
    return error if lost is None else PeerError(lost[1].strip())
