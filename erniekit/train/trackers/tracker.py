"""The interface of experiment trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image


@dataclass(frozen=True)
class ShownAnswer:
    """A generated answer to an eval sample. images: its images, and frames of its videos."""

    sample_id: str
    prompt: str
    expected: str
    answer: str
    scores: Mapping[str, float]
    images: Sequence[Image.Image] = field(default=(), compare=False)

    @property
    def described_scores(self) -> str:
        """Such as "exact_match 1, token_f1 0.667"."""
        return ", ".join(f"{name} {value:.3g}" for name, value in self.scores.items())


class Tracker(Protocol):
    """Shows a run. Methods may raise any exception, which `Guarded` handles."""

    name: str

    def log_scalars(self, step: int, scalars: Mapping[str, float], epoch: float | None) -> None:
        """Metrics after `step` steps, by names of `erniekit.train.metric_names`."""

    def log_shares(self, step: int, shares: Mapping[str, Sequence[float]]) -> None:
        """Histograms with one bar per entry (an expert)."""

    def log_text(self, step: int, name: str, html: str) -> None:
        """A text such as the configuration. html: only the tags p, br, pre, em, strong, table, tr, th and td."""

    def log_answers(self, step: int, answers: Sequence[ShownAnswer]) -> None:
        """Answers of an evaluation, always to the same samples."""

    def flush(self) -> None:
        """Write everything to disk, without waiting for a network."""

    def close(self, *, failed: bool) -> None:
        """End the run. failed: it ended with an error."""


class Guarded:
    """Calls a tracker until it fails: its first exception is logged, and the run continues without it."""

    def __init__(self, tracker: Tracker, log: Callable[[str], None]) -> None:
        self._tracker: Tracker | None = tracker
        self._log = log

    def __call__(self, call: Callable[[Tracker], None]) -> None:
        """Pass the tracker to `call`, unless it has failed before."""
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except Exception as error:  # whatever a library raises must not end the run
            report_failure(self._tracker.name, error, self._log)
            self._tracker = None


def report_failure(name: str, error: Exception, log: Callable[[str], None]) -> None:
    """Log that a tracker has failed."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    log(
        f"note: {name} failed and gets no more metrics: {reason}. The run goes on, and log.jsonl has all metrics"
    )
