"""The report on data files: counters and lengths, without the samples themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from erniekit.data.chat.conversation import Conversation, ImagePart, SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.stats import Notices
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.packing import plan_rows
from erniekit.inspection.contents import characters, contents, digest, media_parts
from erniekit.inspection.lengths import Lengths

Unit = Literal["tokens", "characters"]
_NAMED_DUPLICATES = 5


@dataclass
class FileReport:
    """Counts of one file.

    is_eval: it belongs to data.eval; samples: records, including those with errors; failed: records with errors;
    unreadable: why the file, or its end, cannot be read.
    """

    path: Path
    is_eval: bool = False
    samples: int = 0
    failed: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    unreadable: str | None = None


@dataclass
class RoleCount:
    """Messages of one role; with_loss: trained ones, by the switches in the data; characters: of their texts."""

    messages: int = 0
    with_loss: int = 0
    characters: int = 0


@dataclass
class ErrorList:
    """Errors by reason. `first` keeps the first `most` of them (None: all), and always the first of each reason."""

    most: int | None
    by_reason: Counter[str] = field(default_factory=Counter)
    first: list[SampleError] = field(default_factory=list)

    def add(self, error: SampleError) -> None:
        """Counts an error."""
        self.by_reason[error.reason] += 1
        if self.most is None or len(self.first) < self.most or self.by_reason[error.reason] == 1:
            self.first.append(error)

    @property
    def total(self) -> int:
        """Number of errors."""
        return self.by_reason.total()


@dataclass
class Duplicates:
    """Samples equal to an earlier one; first: the ids of a few of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set, repr=False)

    def add(self, conversation: Conversation) -> None:
        """Counts a sample."""
        key = digest(conversation)
        if key not in self._seen:
            self._seen.add(key)
            return
        self.count += 1
        if len(self.first) < _NAMED_DUPLICATES:
            self.first.append(conversation.sample_id)


@dataclass(frozen=True)
class Packing:
    """The packed rows of one epoch. documents: packed documents; tokens: of all documents."""

    rows: int
    documents: int
    tokens: int
    max_length: int

    @property
    def unused(self) -> float:
        """Share of positions without a token."""
        return 1 - self.tokens / (self.rows * self.max_length)

    @property
    def unused_if_padded(self) -> float:
        """The same share with each document padded to max_length."""
        return 1 - self.tokens / (self.documents * self.max_length)


@dataclass
class CheckReport:
    """Counts and lengths of all files.

    unit: of text lengths; "characters" without a tokenizer.
    dropped: samples skipped for their length by on_long: drop, which are not errors; trimmed: documents without their
    oldest turns; untrained_reasoning: answers with reasoning that is not trained; calls_as_history: see
    `erniekit.data.chat.history`; notices: see `Notices`.
    total, text, vision: length of each whole document, before cutting or trimming. vision: placeholder tokens, of
    documents with media; total: text plus vision if text is in tokens, else text.
    row_lengths, row_patches: of each document that training would use; loss_tokens, vision_tokens: in these.
    """

    unit: Unit
    max_length: int
    errors: ErrorList
    files: list[FileReport] = field(default_factory=list)
    dropped: int = 0
    trimmed: int = 0
    untrained_reasoning: int = 0
    calls_as_history: int = 0
    notices: Notices = field(default_factory=Notices)
    roles: dict[str, RoleCount] = field(default_factory=dict)
    contents: Counter[str] = field(default_factory=Counter)
    images: int = 0
    videos: int = 0
    duplicates: Duplicates = field(default_factory=Duplicates)
    total: Lengths = field(default_factory=Lengths)
    text: Lengths = field(default_factory=Lengths)
    vision: Lengths = field(default_factory=Lengths)
    row_lengths: Lengths = field(default_factory=Lengths)
    row_patches: Lengths = field(default_factory=Lengths)
    loss_tokens: int = 0
    vision_tokens: int = 0

    @property
    def samples(self) -> int:
        """Records of all files."""
        return sum(file.samples for file in self.files)

    @property
    def failed(self) -> int:
        """Records with errors."""
        return sum(file.failed for file in self.files)

    @property
    def unreadable(self) -> list[FileReport]:
        """Files that cannot be read to their end."""
        return [file for file in self.files if file.unreadable is not None]

    @property
    def is_clean(self) -> bool:
        """Whether there are no errors."""
        return not self.failed and not self.unreadable

    def add_conversation(self, conversation: Conversation) -> None:
        """Counts the contents of a sample, even if it cannot be encoded."""
        for message in conversation.messages:
            role = self.roles.setdefault(message.role, RoleCount())
            role.messages += 1
            role.with_loss += message.trained
            role.characters += sum(characters(part) for part in message.parts)
        media = media_parts(conversation)
        images = sum(isinstance(part, ImagePart) for part in media)
        self.images += images
        self.videos += len(media) - images
        self.contents.update(contents(conversation))
        self.duplicates.add(conversation)
        self.notices.add(conversation.notices, conversation.sample_id)

    def add_length(self, text: int, vision: int) -> None:
        """Adds the lengths of a whole document."""
        self.total.add(text + vision if self.unit == "tokens" else text)
        self.text.add(text)
        if vision:
            self.vision.add(vision)

    def add_document(self, document: Document) -> None:
        """Adds a document that training would use."""
        self.row_lengths.add(len(document))
        self.row_patches.add(document.num_patches)
        self.loss_tokens += document.num_loss_tokens
        self.vision_tokens += sum(item.tokens for item in document.media)

    @cached_property
    def packing(self) -> Packing | None:
        """The rows of an epoch with each document once, in random order; None without documents."""
        lengths = self.row_lengths.numpy
        if not len(lengths):
            return None
        mixture = Mixture("concat", "first_exhausted", (1.0,), shuffle=True, seed=0)
        order = mixture.order([len(lengths)], 0)
        rows = plan_rows(order, lengths, self.row_patches.numpy, self.max_length)
        return Packing(len(rows), len(lengths), int(lengths.sum()), self.max_length)
