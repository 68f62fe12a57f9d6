"""A document as chat bubbles: the words of each message, without the text of the template around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Literal

from erniekit.data.chat.conversation import SampleError
from erniekit.data.chat.template import Template
from erniekit.display.difference import DiffPiece, difference
from erniekit.display.text import visible
from erniekit.inspection.preview import KINDS, Piece, PieceKind
from erniekit.inspection.thumbnails import Thumbnail, thumbnails

Role = Literal["system", "tools", "user", "tool", "assistant", "text"]
ROLES: dict[Role, str] = {
    "system": "system",
    "tools": "tools",
    "user": "user",
    "tool": "tool result",
    "assistant": "assistant",
    "text": "plain text",
}
_ROLE_OF: dict[PieceKind, Role] = {
    "system": "system",
    "tools": "tools",
    "user": "user",
    "tool_result": "tool",
    "reasoning": "assistant",
    "tool_call": "assistant",
    "answer": "assistant",
    "text": "text",
}
# Longer texts of these are folded at first.
_FOLDED: tuple[Role, ...] = ("system", "tools")
_OPEN_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class BubblePart:
    """A piece of text, or an image or video.

    kind: as in `Piece`; text: without control characters; words: the same in pieces, marked as common or different
    (all common where nothing is compared); figures: thumbnails, None for text; broken: why there are none.
    """

    kind: PieceKind
    text: str
    trained: bool
    words: tuple[DiffPiece, ...]
    figures: tuple[Thumbnail, ...] | None = None
    broken: str | None = None

    @property
    def label(self) -> str:
        """The line above reasoning and calls."""
        return KINDS[self.kind] if self.kind in ("reasoning", "tool_call") else ""


@dataclass(frozen=True, slots=True)
class Bubble:
    """The text of one message. tokens, trained: numbers of tokens, without the template's."""

    role: Role
    parts: tuple[BubblePart, ...]
    tokens: int
    trained: int

    @property
    def name(self) -> str:
        """The role, for people."""
        return ROLES[self.role]

    @property
    def folded(self) -> bool:
        """Whether the bubble can be folded."""
        return self.role in _FOLDED

    @property
    def is_open(self) -> bool:
        """Whether it is short enough to be open at first."""
        return sum(len(part.text) for part in self.parts) <= _OPEN_CHARACTERS

    @property
    def state(self) -> str:
        """ "trained", "context" or "partly trained"."""
        if not self.trained:
            return "context"
        return "trained" if self.trained == self.tokens else "partly trained"


def make_bubbles(pieces: Iterable[Piece], template: Template, sample_id: str) -> list[Bubble]:
    """The bubbles of a document, in order. Messages without words have none. sample_id: for errors of images."""
    found: list[Bubble] = []
    role: Role | None = None
    collected: list[Piece] = []
    before = ""  # text of the template before the next message

    def close() -> None:
        nonlocal role
        if role is not None and collected:
            found.append(_bubble(role, collected, sample_id))
        role = None
        collected.clear()

    items = list(pieces)
    for index, piece in enumerate(items):
        if piece.kind == "template":
            labels_media = index + 1 < len(items) and items[index + 1].kind == "media"
            # An answer has text of the template inside it, and ends with the terminator.
            if not labels_media and (role != "assistant" or piece.text == template.terminator):
                close()
            if not labels_media:
                before = piece.text
            continue
        if piece.kind == "media":
            wanted: Role = role or ("tool" if before.endswith(template.tool_result[0]) else "user")
        else:
            wanted = _ROLE_OF[piece.kind]
        if wanted != role:
            close()
            role = wanted
        if piece.text:
            collected.append(piece)
    close()
    return found


def compare(chosen: Sequence[Bubble], rejected: Sequence[Bubble]) -> tuple[list[Bubble], list[Bubble]]:
    """Bubbles of two answers with their differences marked: the n-th text of a kind with the n-th of that kind."""
    ours, theirs = _by_kind(chosen), _by_kind(rejected)
    left, right = dict(ours), dict(theirs)
    for key in ours.keys() | theirs.keys():
        first, second = ours.get(key), theirs.get(key)
        one, other = difference(first.text if first else "", second.text if second else "")
        if first is not None:
            left[key] = replace(first, words=tuple(one))
        if second is not None:
            right[key] = replace(second, words=tuple(other))
    return _with_parts(chosen, left), _with_parts(rejected, right)


_Key = tuple[PieceKind, int]


def _keys(bubbles: Sequence[Bubble]) -> list[list[_Key]]:
    """For each part of each bubble its kind and the number of parts of this kind before it."""
    seen: dict[PieceKind, int] = {}
    keys: list[list[_Key]] = []
    for bubble in bubbles:
        keys.append([])
        for part in bubble.parts:
            keys[-1].append((part.kind, seen.setdefault(part.kind, 0)))
            seen[part.kind] += 1
    return keys


def _by_kind(bubbles: Sequence[Bubble]) -> dict[_Key, BubblePart]:
    return {
        key: part
        for bubble, keys in zip(bubbles, _keys(bubbles), strict=True)
        for part, key in zip(bubble.parts, keys, strict=True)
        if part.figures is None
    }


def _with_parts(bubbles: Sequence[Bubble], parts: dict[_Key, BubblePart]) -> list[Bubble]:
    return [
        replace(
            bubble,
            parts=tuple(parts.get(key, part) for part, key in zip(bubble.parts, keys, strict=True)),
        )
        for bubble, keys in zip(bubbles, _keys(bubbles), strict=True)
    ]


def _bubble(role: Role, pieces: Sequence[Piece], sample_id: str) -> Bubble:
    return Bubble(
        role,
        tuple(_part(piece, sample_id) for piece in pieces),
        sum(piece.tokens for piece in pieces),
        sum(piece.tokens for piece in pieces if piece.trained),
    )


def _part(piece: Piece, sample_id: str) -> BubblePart:
    if piece.shown is None:
        text = visible(piece.text)
        return BubblePart(piece.kind, text, piece.trained, (DiffPiece(text, True),))
    found = thumbnails(piece.shown, sample_id)
    source = piece.shown.part.source
    # The raw text has the whole path.
    name = piece.text.replace(source, PurePath(source).name) if isinstance(source, str) else piece.text
    text = visible(name).removeprefix("[").removesuffix("]")
    figures, broken = ((), visible(found.detail)) if isinstance(found, SampleError) else (tuple(found), None)
    return BubblePart(piece.kind, text, False, (DiffPiece(text, True),), figures, broken)
