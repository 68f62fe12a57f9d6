"""A preview of samples as an HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath

from erniekit.data.chat.conversation import SampleError
from erniekit.display.page import render_page
from erniekit.display.text import counted, visible
from erniekit.inspection.preview import KINDS, Piece, PieceKind, Preview, PreviewedDocument, PreviewedSample
from erniekit.inspection.thumbnails import Thumbnail, thumbnails

_TEMPLATE = Path(__file__).with_name("preview.html")
# Kinds that are often long and repeated can be folded; longer ones than this are folded at first.
_FOLDED = ("system", "tools")
_OPEN_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class _Text:
    """A piece on the page. figures: thumbnails of an image or video, None for text; broken: why there are none."""

    kind: PieceKind
    text: str
    tokens: int
    trained: bool
    tip: str
    figures: list[Thumbnail] | None = None
    broken: str | None = None

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")


@dataclass(frozen=True, slots=True)
class _Block:
    """Adjacent pieces.

    folded: they can be folded under `name`; heading: the line above them, for the branches of a pair.
    """

    name: str
    pieces: list[_Text]
    folded: bool
    heading: str = ""

    @property
    def tokens(self) -> int:
        return sum(piece.tokens for piece in self.pieces)

    @property
    def is_open(self) -> bool:
        return sum(len(piece.text) for piece in self.pieces) <= _OPEN_CHARACTERS


@dataclass(frozen=True, slots=True)
class _Bar:
    """Tokens of a kind; shares are percentages of the document."""

    kind: PieceKind
    tokens: int
    trained: int
    trained_share: float
    context_share: float


@dataclass(frozen=True, slots=True)
class _Card:
    """A document, or a sample that cannot be used and the reason. filled: length as a percentage of max_length."""

    name: str
    document: PreviewedDocument | None = None
    reason: str = ""
    detail: str = ""
    blocks: tuple[_Block, ...] = ()
    counts: tuple[_Bar, ...] = ()
    notes: tuple[str, ...] = ()
    filled: float = 0.0


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
        "kinds": KINDS,
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
    bars = []
    for count in document.counts:
        trained = 100 * count.trained / document.tokens
        context = 100 * count.tokens / document.tokens - trained
        bars.append(_Bar(count.kind, count.tokens, count.trained, round(trained, 2), round(context, 2)))
    return _Card(
        visible(document.sample_id),
        document,
        blocks=tuple(_blocks(document)),
        counts=tuple(bars),
        notes=tuple(preview.notes(sample, document)),
        filled=round(min(100.0, 100 * document.tokens / preview.max_length), 2),
    )


def _blocks(document: PreviewedDocument) -> Iterator[_Block]:
    def fold(piece: Piece) -> str | None:
        return KINDS[piece.kind] if piece.kind in _FOLDED else None

    for stretch in document.stretches:
        heading = stretch.title
        for name, pieces in groupby(stretch.pieces, fold):
            texts = [_text(piece, document.sample_id) for piece in pieces]
            yield _Block(name or "", texts, folded=name is not None, heading=heading)
            heading = ""


def _text(piece: Piece, sample_id: str) -> _Text:
    state = "trained" if piece.trained else "context"
    tip = f"{KINDS[piece.kind]}, {counted(piece.tokens, 'token')}, {state}"
    if piece.shown is None:
        return _Text(piece.kind, visible(piece.text), piece.tokens, piece.trained, tip)
    found = thumbnails(piece.shown, sample_id)
    source = piece.shown.part.source
    # The tip has the whole path.
    name = piece.text.replace(source, PurePath(source).name) if isinstance(source, str) else piece.text
    figures, broken = ([], visible(found.detail)) if isinstance(found, SampleError) else (found, None)
    tip = f"{visible(piece.text)} with its start and end tokens: {piece.tokens:,} tokens, context"
    return _Text(piece.kind, visible(name).strip("[]"), piece.tokens, False, tip, figures, broken)
