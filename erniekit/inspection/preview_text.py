"""A preview as plain text, with trained text between ⟦ and ⟧."""

from __future__ import annotations

from collections.abc import Iterator

from erniekit.display.text import format_table, visible
from erniekit.inspection.preview import KINDS, Preview, PreviewedDocument, PreviewedSample, Stretch

OPEN, CLOSE = "⟦", "⟧"
NEWLINE = "⏎"


def preview_lines(preview: Preview) -> Iterator[str]:
    """The preview in pieces of one or more lines, without their last newline."""
    yield heading(preview)
    yield f"legend: {OPEN}trained{CLOSE}, {NEWLINE} a newline; the rest is context"
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
    """The settings the samples are encoded with."""
    policy = preview.encoder.policy
    return (
        f"{preview.title}: model {preview.model}, template {preview.encoder.template.name}, "
        f"max_length {preview.max_length:,}, loss_on {policy.loss_on}, reasoning {policy.reasoning}"
    )


def title(sample: PreviewedSample, document: PreviewedDocument | None = None) -> str:
    """The line above a document."""
    return f"== {visible(document.sample_id if document is not None else sample.sample_id)}"


def summary(preview: Preview, document: PreviewedDocument) -> str:
    """The length of a document."""
    return f"{document.tokens:,} of at most {preview.max_length:,} tokens, {document.loss_tokens:,} trained"


def counts(document: PreviewedDocument) -> list[str]:
    """A table of the tokens of a document by kind, and of all."""
    rows = [("tokens", "total", "trained")]
    for count in document.counts:
        rows.append((KINDS[count.kind], f"{count.tokens:,}", f"{count.trained:,}" if count.trained else "-"))
    rows.append(("all", f"{document.tokens:,}", f"{document.loss_tokens:,}"))
    return format_table(rows, indent=2)


def _marked(stretch: Stretch) -> Iterator[str]:
    """The text of a stretch; adjacent trained pieces share their marks."""
    trained = False
    for piece in stretch.pieces:
        if piece.trained != trained:
            yield OPEN if piece.trained else CLOSE
            trained = piece.trained
        yield visible(piece.text).replace("\n", f"{NEWLINE}\n")
    if trained:
        yield CLOSE
