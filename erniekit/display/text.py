"""Plain text for people: tables, numbers with their nouns, and text from data that is safe to print."""

from __future__ import annotations

from collections.abc import Sequence

_FIRST_SYMBOL = 0x2400  # of U+0000; the others follow
_DELETE, _DELETE_SYMBOL = 0x7F, "␡"
# Marks that change the direction of text, which would show another order than the model sees.
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_VISIBLE = {
    **{code: chr(_FIRST_SYMBOL + code) for code in range(0x20) if chr(code) not in "\n\t"},
    _DELETE: _DELETE_SYMBOL,
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{ord(mark): f"\\u{ord(mark):04x}" for mark in _DIRECTIONS},
}


def visible(text: str) -> str:
    """Text with its control characters as symbols, which do nothing to a terminal; newlines and tabs stay."""
    return text.translate(_VISIBLE)


def clipped(text: str, limit: int = 80) -> str:
    """Text from others in one line of an error: what a terminal or UTF-8 cannot show is escaped, a long end is cut."""
    shown = visible(text[:limit]).replace("\n", "\\n").encode("utf-8", "backslashreplace").decode()
    return shown if len(text) <= limit else f"{shown}..."


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_table(rows: Sequence[Sequence[str]], *, indent: int = 0) -> list[str]:
    """Rows of equal length as lines: the first column aligned left, the others right; indent: spaces before each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " " * indent + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
