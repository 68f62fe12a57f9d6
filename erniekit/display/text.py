"""Plain text for people: tables, numbers with nouns, and text from data that is safe to print."""

from __future__ import annotations

from collections.abc import Sequence

_FIRST_SYMBOL = 0x2400  # the symbol of U+0000; the others follow
_DELETE, _DELETE_SYMBOL = 0x7F, "␡"
# Marks that change the direction of text: it would be shown in another order than the model sees.
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_VISIBLE = {
    **{code: chr(_FIRST_SYMBOL + code) for code in range(0x20) if chr(code) not in "\n\t"},
    _DELETE: _DELETE_SYMBOL,
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{ord(mark): f"\\u{ord(mark):04x}" for mark in _DIRECTIONS},
}


def visible(text: str) -> str:
    """Text with control characters replaced by symbols, so that they do not control a terminal; keeps newlines and
    tabs."""
    return text.translate(_VISIBLE)


def clipped(text: str, limit: int = 80) -> str:
    """Untrusted text for one line of an error: escapes what a terminal or UTF-8 cannot show, and cuts a long end."""
    shown = visible(text[:limit]).replace("\n", "\\n").encode("utf-8", "backslashreplace").decode()
    return shown if len(text) <= limit else f"{shown}..."


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: Sequence[str], limit: int) -> str:
    """The first names, at most `limit`: "a, b", or "a, b and 3 more"."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"


def format_table(rows: Sequence[Sequence[str]], *, indent: int = 0) -> list[str]:
    """Rows of equal length as lines: the first column aligned left, the others right; indent: spaces before each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " " * indent + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
