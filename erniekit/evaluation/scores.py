"""Losses and scores of an evaluation, summed up over all samples, by source and by modality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from erniekit.evaluation.dataset import LossSample


@dataclass
class Mean:
    """A metric over `samples` answers to which it applies."""

    total: float = 0.0
    samples: int = 0

    @property
    def value(self) -> float:
        """The mean, from 0 to 1."""
        return self.total / self.samples


@dataclass
class Figures:
    """What is known of a set of samples.

    samples: with a loss; loss_sum: over loss_tokens tokens of the references; answers: generated, of which `ended`
    were ended by the model, the others cut off; metrics: those that applied to any answer.
    """

    samples: int = 0
    loss_sum: float = 0.0
    loss_tokens: int = 0
    answers: int = 0
    ended: int = 0
    metrics: dict[str, Mean] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """Mean over all loss tokens; None where no loss was computed."""
        return self.loss_sum / self.loss_tokens if self.loss_tokens else None

    @property
    def perplexity(self) -> float | None:
        """exp(loss), infinite where that is too large for a number."""
        if self.loss is None:
            return None
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    def add_answer(self, ended: bool, scores: Mapping[str, float]) -> None:
        """Counts one answer."""
        self.answers += 1
        self.ended += ended
        for name, value in scores.items():
            mean = self.metrics.setdefault(name, Mean())
            mean.total += value
            mean.samples += 1


@dataclass
class Scores:
    """The figures of all samples, and of parts of them."""

    overall: Figures = field(default_factory=Figures)
    sources: dict[str, Figures] = field(default_factory=dict)
    modalities: dict[str, Figures] = field(default_factory=dict)

    def of(self, sample: LossSample) -> tuple[Figures, ...]:
        """All the figures that a sample counts in."""
        return (
            self.overall,
            self.sources.setdefault(sample.source, Figures()),
            self.modalities.setdefault(sample.modality, Figures()),
        )
