"""Loads data files into documents, with an account of what was found and what was left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from erniekit.data.conversation import Conversation, SampleError
from erniekit.data.document import Document
from erniekit.data.encode import Encoder
from erniekit.data.formats import parse_record
from erniekit.data.formats.reader import BadLine, Record, read_records
from erniekit.data.vision import ImageSpec
from erniekit.errors import DataError

OnError = Literal["raise", "skip"]
# (bytes read, bytes in all) of all files together
Progress = Callable[[int, int], None]
_PROGRESS_EVERY = 100  # samples


@dataclass
class DataStats:
    """What a dataset holds.

    samples: that are used; skipped: left out, by reason; tokens: all, vision included; loss_tokens: with a
    label; images; vision_tokens: image placeholders; longest: tokens of the longest sample; messages: by
    role.
    """

    samples: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    loss_tokens: int = 0
    images: int = 0
    vision_tokens: int = 0
    longest: int = 0
    messages: Counter[str] = field(default_factory=Counter)

    def add(self, conversation: Conversation, document: Document) -> None:
        """Counts a sample that is used."""
        self.samples += 1
        self.tokens += len(document)
        self.loss_tokens += document.num_loss_tokens
        self.images += len(document.media)
        self.vision_tokens += sum(item.tokens for item in document.media)
        self.longest = max(self.longest, len(document))
        self.messages.update(message.role for message in conversation.messages)


class ErrorBudget:
    """Decides what a wrong sample means: "raise" it, or "skip" and count it, up to max_errors samples."""

    def __init__(self, on_error: OnError, max_errors: int) -> None:
        self.on_error = on_error
        self.max_errors = max_errors
        # By sample id: a sample that fails in every epoch counts once.
        self.errors: dict[str, SampleError] = {}
        # Told of each sample that is skipped, once; whoever trains sets it, since pictures fail late.
        self.on_skip: Callable[[SampleError], None] | None = None

    def spend(self, error: SampleError) -> None:
        """Takes note of a wrong sample. Raises it, or DataError when there have been too many."""
        if self.on_error == "raise":
            raise error
        if error.sample_id in self.errors:
            return
        self.errors[error.sample_id] = error
        if self.on_skip is not None:
            self.on_skip(error)
        if len(self.errors) > self.max_errors:
            counts = (
                f"more than data.max_errors={self.max_errors} samples cannot be used ({self.by_reason()})"
            )
            raise DataError(f"{counts}; the last: {error}") from error

    def by_reason(self) -> str:
        """The counts in words, most frequent first."""
        counts = Counter(error.reason for error in self.errors.values())
        return ", ".join(f"{reason}: {count}" for reason, count in counts.most_common())


@dataclass(frozen=True)
class Dataset:
    """Encoded samples in the order of their files.

    image_spec: None for a text model; budget: of wrong samples.
    """

    documents: Sequence[Document]
    stats: DataStats
    image_spec: ImageSpec | None
    budget: ErrorBudget

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [len(document) for document in self.documents]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of tokens, labels, pictures' sizes and names: what a plan of rows was made for."""
        digest = hashlib.blake2b(digest_size=16)
        for document in self.documents:
            digest.update(np.int64(len(document)).tobytes())
            digest.update(document.input_ids.tobytes())
            digest.update(document.labels.tobytes())
            for item in document.media:
                # The file's name without its directory: a dataset may be moved.
                name = Path(item.source).name.encode() if isinstance(item.source, str) else item.source
                digest.update(np.asarray(item.grid_thw, np.int64).tobytes() + name)
        return digest.hexdigest()


def load_dataset(
    paths: Sequence[str | Path],
    *,
    encoder: Encoder,
    format: str = "auto",
    max_length: int,
    on_error: OnError = "raise",
    max_errors: int = 100,
    progress: Progress | None = None,
) -> Dataset:
    """Reads and encodes data files (JSON lines or JSON arrays). Of pictures only the headers are read.

    format: "auto", "messages" or "erniekit". A sample longer than max_length tokens is an error, it is never
    cut. on_error: "raise" the first error about a sample, or "skip" such samples and count them, up to
    max_errors. Raises DataError when a file cannot be read or holds nothing, and when no sample is left.
    """
    files = [Path(path) for path in paths]
    sizes = [_size(path) for path in files]
    budget = ErrorBudget(on_error, max_errors)
    stats = DataStats()
    documents: list[Document] = []
    before = 0
    for path, size in zip(files, sizes, strict=True):
        for number, record in enumerate(read_records(path)):
            try:
                documents.append(_encode(record, encoder, format, path.parent, max_length, stats))
            except SampleError as error:
                budget.spend(error)
            if progress is not None and number % _PROGRESS_EVERY == 0:
                progress(before + record.bytes_read, sum(sizes))
        before += size
    if progress is not None:
        progress(before, sum(sizes))
    stats.skipped.update(error.reason for error in budget.errors.values())
    if not documents:
        names = ", ".join(str(path) for path in files)
        raise DataError(f"{names}: no sample can be used ({budget.by_reason()}); the first: {_first(budget)}")
    return Dataset(documents, stats, encoder.image_spec, budget)


def _encode(
    record: Record | BadLine, encoder: Encoder, format: str, base_dir: Path, max_length: int, stats: DataStats
) -> Document:
    if isinstance(record, BadLine):
        raise record.error
    conversation = parse_record(record.value, format=format, base_dir=base_dir, sample_id=record.sample_id)
    document = encoder.encode(conversation)
    if len(document) > max_length:
        detail = (
            f"{len(document)} tokens, more than data.max_length={max_length}: "
            "shorten the sample or raise data.max_length"
        )
        raise SampleError(record.sample_id, "too long", detail)
    stats.add(conversation, document)
    return document


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            raise DataError(f"{path}: is a directory; data files are named one by one")
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot read the data file: {error.strerror or error}") from error


def _first(budget: ErrorBudget) -> SampleError:
    return next(iter(budget.errors.values()))
