"""A preview as plain text: what is trained stands between ⟦ and ⟧."""

from __future__ import annotations

from collections.abc import Iterator

from erniekit.display.text import format_table, visible
from erniekit.inspection.preview import KINDS, Piece, Preview, PreviewedDocument, PreviewedSample, Stretch

OPEN, CLOSE = "⟦", "⟧"
NEWLINE = "⏎"


def plain_lines(preview: Preview) -> Iterator[str]:
    """The preview, piece of text by piece of text, each to be printed with a newline after it."""
    yield heading(preview)
    yield f"legend: {OPEN}trained{CLOSE}, {NEWLINE} a newline; all else is context"
    for sample in preview.samples:
        yield ""
        if sample.error is not None:
            yield title(sample)
            yield f"cannot be used: {visible(sample.error.reason)}: {visible(sample.error.detail)}"
        for number, document in enumerate(sample.documents):
            if number:
                yield ""
            yield title(sample, document)
            for stretch in document.stretches:
                if stretch.title:
                    yield f"-- {stretch.title}"
                yield "".join(_marked(stretch))
            yield ""
            yield summary(preview, document)
            yield from counts(document)
            yield from (f"note: {note}" for note in preview.notes(sample, document))


def heading(preview: Preview) -> str:
    """The settings with which samples are seen."""
    policy = preview.encoder.policy
    return (
        f"{preview.title}: model {preview.model}, template {preview.encoder.template.name}, "
        f"max_length {preview.max_length:,}, loss_on {policy.loss_on}, reasoning {policy.reasoning}"
    )


def title(sample: PreviewedSample, document: PreviewedDocument | None = None) -> str:
    """What stands above a document."""
    return f"== {visible(document.sample_id if document is not None else sample.sample_id)}"


def summary(preview: Preview, document: PreviewedDocument) -> str:
    """How long a document is, in words."""
    return (
        f"{document.tokens:,} tokens, of at most {preview.max_length:,}; {document.loss_tokens:,} are trained"
    )


def counts(document: PreviewedDocument) -> list[str]:
    """Tokens of a document by kind, then in all."""
    rows = [("tokens", "all", "trained")]
    for count in document.counts:
        rows.append((KINDS[count.kind], f"{count.tokens:,}", f"{count.trained:,}" if count.trained else "-"))
    rows.append(("in all", f"{document.tokens:,}", f"{document.loss_tokens:,}"))
    return format_table(rows, indent=2)


def _marked(stretch: Stretch) -> Iterator[str]:
    """The text of a stretch; pieces that are trained and stand side by side share their marks."""
    trained = False
    for piece in stretch.pieces:
        if piece.trained != trained:
            yield OPEN if piece.trained else CLOSE
            trained = piece.trained
        yield shown_text(piece)
    if trained:
        yield CLOSE


def shown_text(piece: Piece) -> str:
    """The text of a piece with its newlines marked."""
    return visible(piece.text).replace("\n", f"{NEWLINE}\n")
