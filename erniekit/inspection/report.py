"""What was found in data files: counters and lengths, never the samples themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from erniekit.data.chat.conversation import Conversation, ImagePart, SampleError
from erniekit.data.encode.account import Notices
from erniekit.data.encode.document import Document
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.packing import plan_rows
from erniekit.inspection.contents import characters, contents, digest, media_parts
from erniekit.inspection.lengths import Lengths

Unit = Literal["tokens", "characters"]
_NAMED_DUPLICATES = 5


@dataclass
class FileReport:
    """One file.

    samples: records, wrong ones included; failed: those with an error; unreadable: why it could not be read, or not to
    its end; heldout: its samples are not trained on.
    """

    path: Path
    heldout: bool = False
    samples: int = 0
    failed: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    unreadable: str | None = None


@dataclass
class RoleCount:
    """Messages of one role, those that carry loss as far as the data says, and the characters of their texts."""

    messages: int = 0
    with_loss: int = 0
    characters: int = 0


@dataclass
class ErrorList:
    """Errors by reason, and the first `most` of them by name (None: all), and the first of each reason in any case."""

    most: int | None
    by_reason: Counter[str] = field(default_factory=Counter)
    first: list[SampleError] = field(default_factory=list)

    def add(self, error: SampleError) -> None:
        """One more."""
        self.by_reason[error.reason] += 1
        if self.most is None or len(self.first) < self.most or self.by_reason[error.reason] == 1:
            self.first.append(error)

    @property
    def total(self) -> int:
        """How many there were."""
        return self.by_reason.total()


@dataclass
class Duplicates:
    """Samples that are the same as an earlier one, the first few by name."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set, repr=False)

    def add(self, conversation: Conversation) -> None:
        """One more sample."""
        key = digest(conversation)
        if key not in self._seen:
            self._seen.add(key)
            return
        self.count += 1
        if len(self.first) < _NAMED_DUPLICATES:
            self.first.append(conversation.sample_id)


@dataclass(frozen=True)
class Packing:
    """One epoch of rows. documents: that are in them; tokens: of all of these."""

    rows: int
    documents: int
    tokens: int
    max_length: int

    @property
    def unused(self) -> float:
        """Share of the positions that hold no token."""
        return 1 - self.tokens / (self.rows * self.max_length)

    @property
    def unused_if_padded(self) -> float:
        """The same, if every document were padded to a row of its own."""
        return 1 - self.tokens / (self.documents * self.max_length)


@dataclass
class Report:
    """All files together.

    unit: of the lengths of texts, "characters" where there is no tokenizer. dropped: samples left out for their length,
    as on_long says, which is no error; trimmed: documents that lost old turns; untrained_reasoning: answers whose
    reasoning is not learnt; calls_as_history: see `erniekit.data.chat.history`;
    notices: see `Notices`. total, text, vision: length of each
    document, whole, before anything is cut or trimmed; vision counts placeholder tokens, of documents that have any,
    and total is text and vision where text is in tokens. row_lengths, row_patches: of each document that training would
    use; tokens and loss_tokens: in these.
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
    pictures: int = 0
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
        """Records in all files."""
        return sum(file.samples for file in self.files)

    @property
    def failed(self) -> int:
        """Records with an error."""
        return sum(file.failed for file in self.files)

    @property
    def unreadable(self) -> list[FileReport]:
        """Files that could not be read, or not to their end."""
        return [file for file in self.files if file.unreadable is not None]

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failed and not self.unreadable

    def add_conversation(self, conversation: Conversation) -> None:
        """Count what a sample says, whether it can be encoded or not."""
        for message in conversation.messages:
            role = self.roles.setdefault(message.role, RoleCount())
            role.messages += 1
            role.with_loss += message.trained
            role.characters += sum(characters(part) for part in message.parts)
        media = media_parts(conversation)
        pictures = sum(isinstance(part, ImagePart) for part in media)
        self.pictures += pictures
        self.videos += len(media) - pictures
        self.contents.update(contents(conversation))
        self.duplicates.add(conversation)
        self.notices.add(conversation.notices, conversation.sample_id)

    def add_length(self, text: int, vision: int) -> None:
        """Count the length of a whole document."""
        self.total.add(text + vision if self.unit == "tokens" else text)
        self.text.add(text)
        if vision:
            self.vision.add(vision)

    def add_document(self, document: Document) -> None:
        """Count a document that training would use."""
        self.row_lengths.add(len(document))
        self.row_patches.add(document.num_patches)
        self.loss_tokens += document.num_loss_tokens
        self.vision_tokens += sum(item.tokens for item in document.media)

    @cached_property
    def packing(self) -> Packing | None:
        """The rows of an epoch in which each document comes once, in random order; None without any."""
        lengths = self.row_lengths.numpy
        if not len(lengths):
            return None
        mixture = Mixture("concat", "first_exhausted", (1.0,), shuffle=True, seed=0)
        order = mixture.order([len(lengths)], 0)
        rows = plan_rows(order, lengths, self.row_patches.numpy, self.max_length)
        return Packing(len(rows), len(lengths), int(lengths.sum()), self.max_length)
