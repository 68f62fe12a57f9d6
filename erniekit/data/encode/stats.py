"""Statistics of data, notices about it, and the budget of samples with errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from erniekit.config.choices import OnError, OnLong
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.samples import TOO_LONG, Sample
from erniekit.display.text import counted
from erniekit.errors import DataError

_MOST_NOTICES = 50
_MOST_DROPPED = 100_000
_MORE_NOTICES = "more notices"


@dataclass
class DataStats:
    """Statistics of a dataset.

    samples: samples used; documents: usually one per sample; skipped: samples skipped, by reason; tokens: all tokens,
    including vision; loss_tokens: tokens with a label; vision_tokens: placeholders of images and videos; patches:
    patches for the vision tower; longest: tokens of the longest document; messages: messages by role; pairs:
    preference pairs used for their chosen answers; trimmed: documents without their oldest turns;
    untrained_reasoning: answers with reasoning that is not trained, because later turns do not see it;
    calls_as_history: see `history.calls_as_history`; notices: see `Notices`.
    """

    samples: int = 0
    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    loss_tokens: int = 0
    images: int = 0
    videos: int = 0
    vision_tokens: int = 0
    patches: int = 0
    longest: int = 0
    messages: Counter[str] = field(default_factory=Counter)
    tool_calls: int = 0
    pairs: int = 0
    trimmed: int = 0
    untrained_reasoning: int = 0
    calls_as_history: int = 0
    notices: Notices = field(default_factory=lambda: Notices())

    def add(self, sample: Sample) -> None:
        """Count a sample, unless it has no document."""
        if not sample.documents:
            return
        self.samples += 1
        self.documents += len(sample.documents)
        for document in sample.documents:
            videos = sum(item.is_video for item in document.media)
            self.tokens += len(document)
            self.loss_tokens += document.num_loss_tokens
            self.videos += videos
            self.images += len(document.media) - videos
            self.vision_tokens += sum(item.tokens for item in document.media)
            self.patches += document.num_patches
            self.longest = max(self.longest, len(document))
        self.messages.update(sample.messages)
        self.tool_calls += sample.tool_calls
        self.pairs += sample.is_pair
        self.trimmed += sample.trimmed
        self.untrained_reasoning += sample.untrained_reasoning
        self.calls_as_history += sample.calls_as_history
        self.notices.add(sample.notices, sample.documents[0].sample_id)

    def merge(self, other: DataStats) -> None:
        """Add the statistics of another part of the data."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, Notices):
                mine.merge(value)
            elif isinstance(value, Counter):
                mine.update(value)
            else:
                setattr(self, name, max(mine, value) if name == "longest" else mine + value)

    def as_dict(self) -> dict[str, Any]:
        """JSON values for `from_dict`."""
        values = {
            name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()
        }
        return {**values, "notices": vars(self.notices)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataStats:
        """The inverse of `as_dict`."""
        stats = cls()
        for name, value in values.items():
            if name == "notices":
                stats.notices = Notices(Counter(value["counts"]), value["first"])
            else:
                setattr(stats, name, Counter(value) if isinstance(value, dict) else value)
        return stats


@dataclass
class Notices:
    """Remarks about data that are not errors, by their text (`Conversation.notices`).

    counts: number of samples with the notice; first: the id of the first one.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, notices: Sequence[str], sample_id: str) -> None:
        """Count the notices of a sample."""
        for text in notices:
            # Data with different keys or functions in each record would make too many.
            if text not in self.counts and len(self.counts) >= _MOST_NOTICES:
                text = _MORE_NOTICES
            self.counts[text] += 1
            self.first.setdefault(text, sample_id)

    def merge(self, other: Notices) -> None:
        """Add the notices of another part of the data, which comes after this one."""
        self.counts.update(other.counts)
        self.first = {**other.first, **self.first}

    def lines(self) -> list[str]:
        """One line for each notice, most frequent first."""
        return [
            f"note: {text}: {counted(count, 'sample')}, the first {self.first[text]}"
            for text, count in self.counts.most_common()
        ]


_MEDIA_REASONS = ("missing image", "missing video", "bad image", "bad video", "not fetched")


class ErrorBudget:
    """Raises the errors of samples ("raise"), or skips and counts up to max_errors samples ("skip").

    With on_long "drop", samples that are too long are skipped and counted separately, without a limit. skip: the
    option that skips samples, for the messages of all errors; None: the messages of errors about images and videos name
    data.on_error.
    """

    def __init__(
        self,
        on_error: OnError,
        max_errors: int,
        on_long: OnLong = "error",
        skip: str | None = None,
    ) -> None:
        self.on_error = on_error
        self._skip = skip
        self.max_errors = max_errors
        self.on_long = on_long
        # By sample id: a sample that fails in every epoch counts once.
        self.errors: dict[str, SampleError] = {}
        self.dropped: dict[str, SampleError] = {}
        # Number of further ones, which count again in every epoch: a stream may have so many that they fill the memory.
        self.more_dropped = 0
        # Called once for each skipped sample. Set during training, when images are decoded.
        self.on_skip: Callable[[SampleError], None] | None = None

    def spend(self, error: SampleError) -> None:
        """Record the error of a sample, or raise it. Raises DataError for too many errors."""
        if self.on_long == "drop" and error.reason == TOO_LONG:
            if len(self.dropped) < _MOST_DROPPED:
                self.dropped.setdefault(error.sample_id, error)
            elif error.sample_id not in self.dropped:
                self.more_dropped += 1
            return
        if self.on_error == "raise":
            if self._skip is None and error.reason not in _MEDIA_REASONS:
                raise error
            skip = self._skip or "data.on_error: skip"
            detail = f"{error.detail}; {skip} leaves out samples with such errors"
            raise SampleError(error.sample_id, error.reason, detail) from error
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

    def left_out(self) -> list[SampleError]:
        """The errors of skipped samples: first errors, then samples that are too long, 100,000 at most."""
        return [*self.errors.values(), *self.dropped.values()]

    @property
    def num_left_out(self) -> int:
        """The number of all skipped samples."""
        return len(self.errors) + len(self.dropped) + self.more_dropped

    def by_reason(self) -> str:
        """The number of skipped samples by reason, most frequent first, such as "too long: 12, bad image: 3"."""
        counts = Counter(error.reason for error in self.left_out())
        if self.more_dropped:
            counts[TOO_LONG] += self.more_dropped
        return ", ".join(f"{reason}: {count:,}" for reason, count in counts.most_common())
