"""Reads a record of a data file as documents that fit into a row, with counts of its contents."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from erniekit.config.choices import OnLong
from erniekit.data.chat.conversation import Conversation, Message, ReasoningPart, SampleError, ToolCallPart
from erniekit.data.chat.history import calls_as_history, untrained_reasoning
from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.pairs import encode_pair, prompt_messages
from erniekit.data.files.reader import BadLine, Record
from erniekit.data.formats import detect, parse_record
from erniekit.data.media.access import NO_URLS, MediaAccess
from erniekit.display.text import counted

Pairs = Literal["chosen", "shared", "separate"]
TOO_LONG = "too long"


def pair_mode(task: str, share_prompt: bool) -> Pairs:
    """`SampleReader.pairs` for the settings `task` and data.share_prompt."""
    if task != "dpo":
        return "chosen"
    return "shared" if share_prompt else "separate"


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of reading one record.

    documents: several for a long text or with data.loss_on each_turn; errors: of the documents that cannot be used;
    whole: (tokens, vision tokens among them) of each document before it was cut, trimmed or rejected; messages: number
    by role; trimmed: number of documents without their oldest turns; untrained_reasoning, calls_as_history: see
    `erniekit.data.chat.history`; notices: see `Conversation`.
    """

    documents: tuple[Document, ...] = ()
    errors: tuple[SampleError, ...] = ()
    whole: tuple[tuple[int, int], ...] = ()
    messages: Counter[str] = field(default_factory=Counter)
    tool_calls: int = 0
    is_pair: bool = False
    trimmed: int = 0
    untrained_reasoning: int = 0
    calls_as_history: int = 0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SampleReader:
    """Reads records. It is pickled for worker processes.

    on_long: a document with more than max_length tokens, or more positions than the model has, is an error, or loses
    its oldest exchanges ("trim_history"); `ErrorBudget` handles "drop". pairs: "chosen" reads the chosen answer of a
    preference pair as an ordinary chat. With "shared" and "separate" every sample must be a pair, and is encoded with a
    shared or a separate prompt, see `encode_pair`.
    """

    encoder: Encoder
    max_length: int
    on_long: OnLong
    access: MediaAccess = NO_URLS
    pairs: Pairs = "chosen"

    def read(self, record: Record | BadLine, base_dir: Path, format: str) -> Sample:
        """Read one record. Errors are part of the result.

        base_dir: the directory of relative paths in the record; format: see `erniekit.data.formats`.
        """
        if isinstance(record, BadLine):
            return Sample(errors=(record.error,))
        try:
            conversation = parse_record(
                record.value,
                format=format,
                base_dir=base_dir,
                sample_id=record.sample_id,
                access=self.access,
            )
            self.require_pair(conversation, record, format)
            return self.encode(conversation)
        except SampleError as error:
            return Sample(errors=(error,))

    def require_pair(self, conversation: Conversation, record: Record, format: str) -> None:
        """Raise SampleError for a sample that is not a preference pair, if all must be."""
        if self.pairs != "chosen" and not conversation.rejected:
            raise _not_a_pair(record, format)

    def encode(self, conversation: Conversation) -> Sample:
        """Encode a parsed sample. Raises SampleError, except for documents that are too long: see `Sample.errors`."""
        documents: list[Document] = []
        errors: list[SampleError] = []
        whole: list[tuple[int, int]] = []
        trimmed = 0
        for part in self.encoder.split(conversation):
            document = self._document(part)
            whole.append((len(document), sum(item.tokens for item in document.media)))
            if self._fits(document):
                documents.append(document)
            elif part.messages[0].role == "text":
                documents += cut(
                    document, min(self.max_length, self.encoder.limits.max_positions or len(document))
                )
            else:
                shorter = self._trim(part) if self.on_long == "trim_history" else None
                if shorter is None:
                    errors.append(self._too_long(document))
                else:
                    documents.append(shorter)
                    trimmed += 1
        parts = [part for message in conversation.messages for part in message.parts]
        reasoning = sum(isinstance(part, ReasoningPart) for part in parts)
        calls = sum(isinstance(part, ToolCallPart) for part in parts)
        template, policy = self.encoder.template, self.encoder.policy
        return Sample(
            documents=tuple(documents),
            errors=tuple(errors),
            whole=tuple(whole),
            messages=Counter(message.role for message in conversation.messages),
            tool_calls=calls,
            is_pair=bool(conversation.rejected),
            trimmed=trimmed,
            untrained_reasoning=reasoning and untrained_reasoning(conversation, template, policy),
            calls_as_history=calls and calls_as_history(conversation, template, policy),
            notices=conversation.notices,
        )

    def _document(self, conversation: Conversation) -> Document:
        if self.pairs == "chosen":
            return self.encoder.encode(conversation)
        return encode_pair(self.encoder, conversation, share=self.pairs == "shared")

    def _trim(self, conversation: Conversation) -> Document | None:
        """The document of the most recent exchanges that fit; None if the last one alone does not fit.

        An exchange begins with a user message. The system message, the tools and the answers of a pair are kept; images
        and videos are removed with their message.
        """
        messages = conversation.messages
        end = len(messages) if self.pairs == "chosen" else prompt_messages(conversation)
        exchanges = sum(message.role == "user" for message in messages[:end])
        # Binary search for the fewest exchanges to remove: each one makes the document shorter.
        fewest, most = 1, exchanges - 1
        fitting: Document | None = None
        while fewest <= most:
            middle = (fewest + most) // 2
            rest = dataclasses.replace(
                conversation,
                messages=(*_recent(messages[:end], middle), *messages[end:]),
                rejected_prompt=_recent(conversation.rejected_prompt, middle),
            )
            document = self._document(rest)
            if self._fits(document):
                fitting, most = document, middle - 1
            else:
                fewest = middle + 1
        return fitting

    def _fits(self, document: Document) -> bool:
        return len(document) <= self.max_length and self.encoder.limits.fits(document)

    def _too_long(self, document: Document) -> SampleError:
        limits = self.encoder.limits
        reasons, cures = [], []
        if len(document) > self.max_length:
            reasons.append(
                f"{counted(len(document), 'token')}, more than data.max_length={self.max_length:,}"
            )
            cures.append("raise data.max_length")
        if not limits.fits(document):
            reasons.append(limits.too_long(document))
            cures.append("set model.max_position_embeddings to train beyond it")
        found, more = "; ".join(reasons), " and ".join(cures)
        if self.on_long == "trim_history":
            what = f"its last exchange alone does not fit: shorten it, or {more}"
        else:
            what = f"shorten it, {more}, or set data.on_long to trim_history or drop"
        return SampleError(document.sample_id, TOO_LONG, f"{found}: {what}")


def _recent(messages: tuple[Message, ...], dropped: int) -> tuple[Message, ...]:
    """Messages without their oldest `dropped` exchanges. Keeps the system message and the last exchange."""
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    head = messages[:1] if messages and messages[0].role == "system" else ()
    return (*head, *messages[starts[min(dropped, len(starts) - 1)] :]) if starts else messages


def _not_a_pair(record: Record, format: str) -> SampleError:
    found = detect(record.value) if format == "auto" and isinstance(record.value, dict) else format
    detail = (
        f"a sample of format {found} without a rejected answer: task dpo trains on preference pairs (a prompt with "
        "`chosen` and `rejected`, or their names in that format). Use data that has them, or task: sft"
    )
    return SampleError(record.sample_id, "not a pair", detail)


def cut(document: Document, max_length: int) -> Iterator[Document]:
    """Split a long plain text into pieces of at most max_length tokens.

    Each piece begins with the last token of the previous one, so that every token is predicted once.
    """
    for start in range(0, len(document) - 1, max_length - 1):
        ids = document.input_ids[start : start + max_length]
        labels = document.labels[start : start + max_length].copy()
        if start + max_length < len(document):
            labels[-1] = IGNORE  # trained in the next piece
        yield Document(ids, labels, (), document.sample_id)
