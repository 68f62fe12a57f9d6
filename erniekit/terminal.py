"""Text from models and clients, made safe to print on a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """The text with control characters replaced, except newline and tab, so that escape sequences have no effect."""
    return "".join(
        ["\N{REPLACEMENT CHARACTER}" if _is_control(character) else character for character in text]
    )


def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and character not in "\n\t"
