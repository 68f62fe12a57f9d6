"""Samples as the model will see them, stretch by stretch, ready to be shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from erniekit.data.chat.conversation import Conversation, ImagePart, SampleError, VideoPart
from erniekit.data.chat.template import Kind
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder, Segment
from erniekit.data.encode.pairs import encode_pair, with_rejected
from erniekit.data.encode.samples import SampleReader
from erniekit.data.files.reader import BadLine
from erniekit.data.formats import parse_record
from erniekit.data.media.images import describe
from erniekit.data.media.item import Media
from erniekit.inspection.choose import Chosen

ShownKind = Kind | Literal["media"]
# Of a preference pair: what both answers begin with, and what each has for itself.
Branch = Literal["shared", "chosen", "rejected"]
# Every kind, in the order in which they are counted and explained, and what it is called.
KINDS: dict[ShownKind, str] = {
    "template": "template",
    "system": "system",
    "tools": "tools",
    "user": "user",
    "media": "picture or video",
    "tool_result": "tool result",
    "reasoning": "reasoning",
    "tool_call": "tool call",
    "answer": "answer",
    "text": "plain text",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture or video in a document.

    label: "picture 1", "video 2", ... in each document; size: (width, height) in pixels that the model sees.
    """

    label: str
    part: ImagePart | VideoPart
    media: Media
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a document.

    text: what it says, or of a picture or video what to show in its place; branch: None but in a pair of two answers.
    """

    kind: ShownKind
    text: str
    tokens: int
    trained: bool
    shown: Shown | None = None
    branch: Branch | None = None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pieces of one branch that follow each other; of a document without branches all of them.

    loss_tokens: as training counts them.
    """

    branch: Branch | None
    pieces: tuple[Piece, ...]
    tokens: int
    loss_tokens: int

    @property
    def title(self) -> str:
        """What stands above it; nothing without branches."""
        if self.branch is None:
            return ""
        name = {"shared": "shared by both answers", "chosen": "chosen answer", "rejected": "rejected answer"}
        return f"{name[self.branch]}: {self.tokens:,} tokens, {self.loss_tokens:,} trained"


@dataclass(frozen=True, slots=True)
class KindCount:
    """Tokens of one kind in a document, and how many of them are trained."""

    kind: ShownKind
    tokens: int
    trained: int


@dataclass(frozen=True, slots=True)
class PreviewedDocument:
    """One document. tokens, loss_tokens: as training counts them; positions: that it takes of the model's."""

    sample_id: str
    pieces: tuple[Piece, ...]
    tokens: int
    loss_tokens: int
    positions: int

    @property
    def stretches(self) -> list[Stretch]:
        """The branches of a pair, else all of it."""
        found = []
        for branch, group in groupby(self.pieces, lambda piece: piece.branch):
            pieces = tuple(group)
            trained = sum(piece.tokens for piece in pieces if piece.trained)
            found.append(Stretch(branch, pieces, sum(piece.tokens for piece in pieces), trained))
        return found

    @property
    def counts(self) -> list[KindCount]:
        """Tokens by kind, of those kinds that there are."""
        found = []
        for kind in KINDS:
            pieces = [piece for piece in self.pieces if piece.kind == kind]
            if pieces:
                trained = sum(piece.tokens for piece in pieces if piece.trained)
                found.append(KindCount(kind, sum(piece.tokens for piece in pieces), trained))
        return found


@dataclass(frozen=True, slots=True)
class PreviewedSample:
    """One record.

    documents: what becomes of it; error: why it cannot be used; is_pair: a preference pair; notices: as in
    `Conversation`.
    """

    sample_id: str
    documents: tuple[PreviewedDocument, ...] = ()
    error: SampleError | None = None
    is_pair: bool = False
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preview:
    """Samples, and the settings with which they are seen."""

    title: str
    model: str
    encoder: Encoder
    max_length: int
    on_long: str
    samples: Sequence[PreviewedSample]

    def notes(self, sample: PreviewedSample, document: PreviewedDocument) -> list[str]:
        """What else there is to say of a document."""
        notes = list(sample.notices)
        limit = self.encoder.limits.max_positions
        too_many = limit is not None and document.positions > limit
        if document.tokens > self.max_length or too_many:
            if document.pieces[-1].kind == "text":
                fate = "it is cut into pieces"
            else:
                fate = {
                    "error": "it is an error",
                    "drop": "it is left out",
                    "trim_history": "it loses its oldest turns",
                }[self.on_long]
            what = f"the model's max_position_embeddings={limit:,}" if too_many else "data.max_length"
            notes.append(f"longer than {what}: {fate} (data.on_long: {self.on_long})")
        if sample.is_pair and document.pieces[-1].branch is None:
            notes.append("a preference pair: the chosen answer is shown, and learnt (task: dpo takes both)")
        elif sample.is_pair:
            notes.append(
                "what each answer has for itself begins with the token that predicts its first trained one"
            )
        return notes


def preview_samples(chosen: Iterable[Chosen], reader: SampleReader) -> list[PreviewedSample]:
    """Samples as that reader sees them, but for their length. One that cannot be used is there with its error."""
    return [_preview(item, reader) for item in chosen]


def _preview(chosen: Chosen, reader: SampleReader) -> PreviewedSample:
    file, record = chosen
    if isinstance(record, BadLine):
        return PreviewedSample(record.error.sample_id, error=record.error)
    try:
        conversation = parse_record(
            record.value,
            format=file.format,
            base_dir=file.path.parent,
            sample_id=record.sample_id,
            allow_urls=reader.allow_urls,
        )
        reader.require_pair(conversation, record, file.format)
        documents = tuple(_document(part, reader) for part in reader.encoder.split(conversation))
    except SampleError as error:
        return PreviewedSample(record.sample_id, error=error)
    is_pair = bool(conversation.rejected)
    return PreviewedSample(record.sample_id, documents, is_pair=is_pair, notices=conversation.notices)


def _document(conversation: Conversation, reader: SampleReader) -> PreviewedDocument:
    encoder = reader.encoder
    if reader.pairs == "chosen":
        document = encoder.encode(conversation)
        pieces = list(_pieces(encoder.segments(conversation), document, encoder))
    else:
        document, pieces = _pair(conversation, encoder, share=reader.pairs == "shared")
    return PreviewedDocument(
        conversation.sample_id,
        tuple(pieces),
        len(document),
        document.num_loss_tokens,
        document.num_positions,
    )


def _pair(conversation: Conversation, encoder: Encoder, *, share: bool) -> tuple[Document, list[Piece]]:
    document = encode_pair(encoder, conversation, share=share)
    assert document.branches is not None, "a pair has branches"
    start, _ = document.branches
    pieces: list[Piece] = []
    answers: list[tuple[Branch, Conversation]] = [
        ("chosen", conversation),
        ("rejected", with_rejected(conversation)),
    ]
    for branch, answer in answers:
        done = 0
        for piece in _pieces(encoder.segments(answer, start), encoder.encode(answer), encoder):
            shared = done < start
            done += piece.tokens
            if not shared or branch == "chosen":
                pieces.append(replace(piece, branch="shared" if shared else branch))
    return document, pieces


def _pieces(segments: Iterable[Segment], document: Document, encoder: Encoder) -> Iterator[Piece]:
    """Segments with the pictures and videos of their document."""
    media = iter(document.media)
    pictures = videos = 0
    for segment in segments:
        if segment.part is None:
            yield Piece(segment.kind, segment.text, segment.tokens, segment.trained)
            continue
        if isinstance(segment.part, ImagePart):
            pictures += 1
            label = f"picture {pictures}"
        else:
            videos += 1
            label = f"video {videos}"
        shown = _shown(label, segment.part, next(media), encoder)
        yield Piece("media", _placeholder(shown), segment.tokens, False, shown)


def _shown(label: str, part: ImagePart | VideoPart, media: Media, encoder: Encoder) -> Shown:
    spec = encoder.media_spec
    assert spec is not None, "only an encoder with a MediaSpec makes documents with media"
    patch = spec.video.patch_size if media.is_video else spec.image.patch_size
    _, rows, columns = media.grid_thw
    return Shown(label, part, media, (columns * patch, rows * patch))


def _placeholder(shown: Shown) -> str:
    width, height = shown.size
    frames = f"{len(shown.media.frames)} frames of " if shown.media.is_video else ""
    name = describe(shown.part.source)
    times = shown.media.times
    known = f"from {times[0]:g} to {times[-1]:g} s, " if times else ""
    return f"[{shown.label}: {name} {frames}{width}x{height}, {known}{shown.media.tokens:,} tokens]"
