"""A preview of samples as an HTML page: chats as bubbles, the raw text on demand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erniekit.display.page import render_page
from erniekit.display.text import counted, visible
from erniekit.inspection.bubbles import Bubble, compare, make_bubbles
from erniekit.inspection.preview import (
    BRANCH_NOTE,
    KINDS,
    Piece,
    PieceKind,
    Preview,
    PreviewedDocument,
    PreviewedSample,
)

_TEMPLATE = Path(__file__).with_name("preview.html")


@dataclass(frozen=True, slots=True)
class _RawPiece:
    """A piece of the raw text. tip: its kind and tokens."""

    kind: PieceKind
    lines: tuple[str, ...]
    trained: bool
    tip: str


@dataclass(frozen=True, slots=True)
class _RawStretch:
    """The raw text of a branch. title: empty without branches."""

    title: str
    pieces: tuple[_RawPiece, ...]


@dataclass(frozen=True, slots=True)
class _AnswerColumn:
    """One answer of a pair. mark: the element around words that the other answer does not have."""

    title: str
    mark: str
    bubbles: tuple[Bubble, ...]


@dataclass(frozen=True, slots=True)
class _Card:
    """A document, or a sample that cannot be used and the reason.

    shared: the bubbles of a chat, or those before the two answers of a pair; counts: tokens by kind; raw_note: about
    the raw text.
    """

    name: str
    document: PreviewedDocument | None = None
    reason: str = ""
    detail: str = ""
    shared: tuple[Bubble, ...] = ()
    answers: tuple[_AnswerColumn, ...] = ()
    stretches: tuple[_RawStretch, ...] = ()
    counts: str = ""
    notes: tuple[str, ...] = ()
    raw_note: str = ""


def render_preview(preview: Preview) -> str:
    """The HTML page. Text from data is escaped, and control characters are replaced by symbols."""
    policy = preview.encoder.policy
    settings = (
        ("model", preview.model),
        ("template", preview.encoder.template.name),
        ("max_length", f"{preview.max_length:,}"),
        ("loss_on", policy.loss_on),
        ("reasoning", policy.reasoning),
        ("samples", f"{len(preview.samples):,}"),
    )
    values = {
        "title": f"Preview of {preview.title}",
        "settings": settings,
        "max_length": preview.max_length,
        "cards": list(_cards(preview)),
    }
    return render_page(_TEMPLATE, values)


def _cards(preview: Preview) -> Iterator[_Card]:
    for sample in preview.samples:
        if sample.error is not None:
            reason, detail = visible(sample.error.reason), visible(sample.error.detail)
            yield _Card(visible(sample.sample_id), reason=reason, detail=detail)
        for document in sample.documents:
            yield _card(preview, sample, document)


def _card(preview: Preview, sample: PreviewedSample, document: PreviewedDocument) -> _Card:
    template = preview.encoder.template
    stretches = document.stretches
    bubbles = {
        stretch.branch: make_bubbles(stretch.pieces, template, document.sample_id) for stretch in stretches
    }
    answers: list[_AnswerColumn] = []
    if "chosen" in bubbles and "rejected" in bubbles:
        titles = {stretch.branch: stretch.title for stretch in stretches}
        chosen, rejected = compare(bubbles["chosen"], bubbles["rejected"])
        answers.append(_AnswerColumn(titles["chosen"], "ins", tuple(chosen)))
        answers.append(_AnswerColumn(titles["rejected"], "del", tuple(rejected)))
    return _Card(
        visible(document.sample_id),
        document,
        shared=tuple(bubbles.get("shared" if answers else None, ())),
        answers=tuple(answers),
        stretches=tuple(
            _RawStretch(stretch.title, tuple(map(_raw, stretch.pieces))) for stretch in stretches
        ),
        counts=", ".join(
            f"{KINDS[count.kind]} {count.tokens:,}"
            + (f" ({count.trained:,} trained)" if count.trained else "")
            for count in document.counts
        ),
        notes=tuple(note for note in preview.notes(sample, document) if note != BRANCH_NOTE),
        raw_note=BRANCH_NOTE if answers else "",
    )


def _raw(piece: Piece) -> _RawPiece:
    state = "trained" if piece.trained else "context"
    tip = f"{KINDS[piece.kind]}, {counted(piece.tokens, 'token')}, {state}"
    if piece.shown is not None:
        tip = f"image or video with its start and end tokens: {counted(piece.tokens, 'token')}, context"
    return _RawPiece(piece.kind, tuple(visible(piece.text).split("\n")), piece.trained, tip)
