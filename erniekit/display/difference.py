"""The difference of two texts, word by word."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

# The units of a difference: a word, one character of Chinese or Japanese, white space, or any other character.
_UNIT = re.compile(
    r"[\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3005-\u9fff]+|\s+|.", re.DOTALL
)
_MOST_UNITS = 2000  # longer texts are not compared: the time is quadratic


@dataclass(frozen=True, slots=True)
class DiffPiece:
    """A part of a text. same: the other text has it too."""

    text: str
    same: bool


def difference(first: str, second: str) -> tuple[list[DiffPiece], list[DiffPiece]]:
    """Both texts in pieces, marked as common or different; texts that are too long to compare are one piece each.

    White space between two differences counts as different, so that a changed phrase is marked as one.
    """
    if first == second:
        return _pieces([(first, True)]), _pieces([(second, True)])
    ours, theirs = _UNIT.findall(first), _UNIT.findall(second)
    if max(len(ours), len(theirs)) > _MOST_UNITS:
        return _pieces([(first, False)]), _pieces([(second, False)])
    left: list[tuple[str, bool]] = []
    right: list[tuple[str, bool]] = []
    codes = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    for index, (tag, start, end, other_start, other_end) in enumerate(codes):
        text = "".join(ours[start:end])
        same = tag == "equal" and (text.strip() != "" or index in (0, len(codes) - 1))
        left.append((text, same))
        right.append(("".join(theirs[other_start:other_end]), same))
    return _pieces(left), _pieces(right)


def _pieces(marked: list[tuple[str, bool]]) -> list[DiffPiece]:
    """The texts without empty ones; adjacent texts of one kind are joined."""
    pieces: list[DiffPiece] = []
    for text, same in marked:
        if pieces and pieces[-1].same == same:
            pieces[-1] = DiffPiece(pieces[-1].text + text, same)
        elif text:
            pieces.append(DiffPiece(text, same))
    return pieces
