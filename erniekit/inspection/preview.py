"""Samples as the model will see them: pieces of text and media with their tokens, ready for display."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from erniekit.data.chat.conversation import Conversation, ImagePart, SampleError, VideoPart
from erniekit.data.chat.history import calls_as_history, untrained_reasoning
from erniekit.data.chat.template import SpanKind
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder, Segment
from erniekit.data.encode.pairs import encode_pair, with_rejected
from erniekit.data.encode.samples import SampleReader
from erniekit.data.files.reader import BadLine
from erniekit.data.formats import parse_record
from erniekit.data.media.images import source_name
from erniekit.data.media.item import Media
from erniekit.display.text import counted
from erniekit.inspection.select import SelectedRecord

PieceKind = SpanKind | Literal["media"]
# Parts of a preference pair: the shared prefix of both answers, and the rest of each.
Branch = Literal["shared", "chosen", "rejected"]
# All kinds and their labels, in display order.
KINDS: dict[PieceKind, str] = {
    "template": "template",
    "system": "system",
    "tools": "tools",
    "user": "user",
    "media": "image or video",
    "tool_result": "tool result",
    "reasoning": "reasoning",
    "tool_call": "tool call",
    "answer": "answer",
    "text": "plain text",
}
BRANCH_NOTE = "each branch begins with the token that predicts its first trained token"


@dataclass(frozen=True, slots=True)
class ShownMedia:
    """An image or video of a document.

    label: "image 1", "video 2", ..., numbered per document; size: (width, height) in pixels, as the model sees it.
    """

    label: str
    part: ImagePart | VideoPart
    media: Media
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a document of one kind.

    text: its text, or a description of an image or video; branch: None unless the document is a preference pair.
    """

    kind: PieceKind
    text: str
    tokens: int
    trained: bool
    shown: ShownMedia | None = None
    branch: Branch | None = None


@dataclass(frozen=True, slots=True)
class Stretch:
    """The pieces of one branch; all pieces of a document without branches.

    loss_tokens: trained tokens, as training counts them.
    """

    branch: Branch | None
    pieces: tuple[Piece, ...]
    tokens: int
    loss_tokens: int

    @property
    def title(self) -> str:
        """The heading of the branch; empty without branches."""
        if self.branch is None:
            return ""
        name = {"shared": "shared by both answers", "chosen": "chosen answer", "rejected": "rejected answer"}
        return f"{name[self.branch]}: {counted(self.tokens, 'token')}, {self.loss_tokens:,} trained"


@dataclass(frozen=True, slots=True)
class KindCount:
    """Tokens of one kind in a document; trained: those with a label."""

    kind: PieceKind
    tokens: int
    trained: int


@dataclass(frozen=True, slots=True)
class PreviewedDocument:
    """One document. tokens, loss_tokens: as training counts them; positions: of the model's max_position_embeddings."""

    sample_id: str
    pieces: tuple[Piece, ...]
    tokens: int
    loss_tokens: int
    positions: int

    @property
    def stretches(self) -> list[Stretch]:
        """The branches of a pair, else one stretch with all pieces."""
        found = []
        for branch, group in groupby(self.pieces, lambda piece: piece.branch):
            pieces = tuple(group)
            trained = sum(piece.tokens for piece in pieces if piece.trained)
            found.append(Stretch(branch, pieces, sum(piece.tokens for piece in pieces), trained))
        return found

    @property
    def counts(self) -> list[KindCount]:
        """Tokens by kind, without empty kinds."""
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

    documents: made from the record; error: why it cannot be used; is_pair: a preference pair; notices: as in
    `Conversation`.
    """

    sample_id: str
    documents: tuple[PreviewedDocument, ...] = ()
    error: SampleError | None = None
    is_pair: bool = False
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preview:
    """Samples and the settings they are encoded with."""

    title: str
    model: str
    encoder: Encoder
    max_length: int
    on_long: str
    samples: Sequence[PreviewedSample]

    def notes(self, sample: PreviewedSample, document: PreviewedDocument) -> list[str]:
        """Remarks on a document."""
        notes = list(sample.notices)
        limit = self.encoder.limits.max_positions
        too_many = limit is not None and document.positions > limit
        if document.tokens > self.max_length or too_many:
            if document.pieces[-1].kind == "text":
                action = "it is cut into pieces"
            else:
                action = {
                    "error": "it is an error",
                    "drop": "it is skipped",
                    "trim_history": "it loses its oldest turns",
                }[self.on_long]
            limit_name = f"the model's max_position_embeddings={limit:,}" if too_many else "data.max_length"
            notes.append(f"longer than {limit_name}: {action} (data.on_long: {self.on_long})")
        if sample.is_pair and document.pieces[-1].branch is None:
            notes.append(
                "preference pair: only the chosen answer is shown and trained (task: dpo trains on both)"
            )
        elif sample.is_pair:
            notes.append(BRANCH_NOTE)
        return notes


def preview_samples(selected: Iterable[SelectedRecord], reader: SampleReader) -> list[PreviewedSample]:
    """Encodes samples as training does, without its length limits. A sample that cannot be used has its error."""
    return [_preview(item, reader) for item in selected]


def _preview(selected: SelectedRecord, reader: SampleReader) -> PreviewedSample:
    file, record = selected
    if isinstance(record, BadLine):
        return PreviewedSample(record.error.sample_id, error=record.error)
    try:
        conversation = parse_record(
            record.value,
            format=file.format,
            base_dir=file.path.parent,
            sample_id=record.sample_id,
            access=reader.access,
        )
        reader.require_pair(conversation, record, file.format)
        documents = tuple(_document(part, reader) for part in reader.encoder.split(conversation))
    except SampleError as error:
        return PreviewedSample(record.sample_id, error=error)
    is_pair = bool(conversation.rejected)
    notices = (*conversation.notices, *_untrained(conversation, reader))
    return PreviewedSample(record.sample_id, documents, is_pair=is_pair, notices=notices)


def _untrained(conversation: Conversation, reader: SampleReader) -> Iterator[str]:
    """What data.loss_on: each_turn would train, or in another form, as `erniekit data check` counts it."""
    if conversation.messages[0].role == "text":
        return
    template, policy = reader.encoder.template, reader.encoder.policy
    if answers := untrained_reasoning(conversation, template, policy):
        yield (
            f"the reasoning of {counted(answers, 'earlier answer')} is not trained, since later turns do not see it "
            "(data.loss_on: each_turn trains it)"
        )
    # each_turn does not apply to pairs.
    if reader.pairs == "chosen" and (calls := calls_as_history(conversation, template, policy)):
        yield (
            f"{counted(calls, 'tool call')} trained in the form of history, not as the model is prompted for them "
            "(data.loss_on: each_turn trains them as answers)"
        )


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
    """Segments with the images and videos of their document."""
    media = iter(document.media)
    images = videos = 0
    for segment in segments:
        if segment.part is None:
            yield Piece(segment.kind, segment.text, segment.tokens, segment.trained)
            continue
        if isinstance(segment.part, ImagePart):
            images += 1
            label = f"image {images}"
        else:
            videos += 1
            label = f"video {videos}"
        shown = _shown(label, segment.part, next(media), encoder)
        yield Piece("media", _placeholder(shown), segment.tokens, False, shown)


def _shown(label: str, part: ImagePart | VideoPart, media: Media, encoder: Encoder) -> ShownMedia:
    spec = encoder.media_spec
    assert spec is not None, "only an encoder with a MediaSpec makes documents with media"
    patch = spec.video.patch_size if media.is_video else spec.image.patch_size
    _, rows, columns = media.grid_thw
    return ShownMedia(label, part, media, (columns * patch, rows * patch))


def _placeholder(shown: ShownMedia) -> str:
    width, height = shown.size
    frames = f"{len(shown.media.frames)} frames of " if shown.media.is_video else ""
    name = source_name(shown.part.source)
    times = shown.media.times
    known = f"from {times[0]:g} to {times[-1]:g} s, " if times else ""
    return f"[{shown.label}: {name} {frames}{width}x{height}, {known}{shown.media.tokens:,} tokens]"
