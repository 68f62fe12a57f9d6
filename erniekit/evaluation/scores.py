"""Sums of losses and metrics of an evaluation: over all samples, by source and by modality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from erniekit.evaluation.dataset import LossSample
from erniekit.objectives.pairs import pair_means

PREFERENCE = ("rewards/accuracy", "rewards/margin", "logps/chosen", "logps/rejected")
"""Metrics of preference pairs, as training logs them."""


@dataclass
class Mean:
    """The mean of a metric over the answers it applies to."""

    total: float = 0.0
    samples: int = 0

    @property
    def value(self) -> float:
        """The mean, from 0 to 1."""
        return self.total / self.samples


@dataclass
class GroupScores:
    """Sums over a group of samples.

    samples: with a loss; loss_sum: over `loss_tokens` tokens; answers: generated ones; ended: those that the model
    ended, the others are cut off; metrics: those that apply to at least one answer; pair_sums: over preference pairs,
    see `RowPairs.sums`.
    """

    samples: int = 0
    loss_sum: float = 0.0
    loss_tokens: int = 0
    answers: int = 0
    ended: int = 0
    metrics: dict[str, Mean] = field(default_factory=dict)
    pair_sums: dict[str, float] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """Number of preference pairs."""
        return int(self.pair_sums.get("pairs", 0))

    @property
    def preference(self) -> dict[str, float]:
        """Means over the preference pairs, by the names of PREFERENCE; empty without pairs."""
        means = pair_means(self.pair_sums)
        return {name: means[name] for name in PREFERENCE if name in means}

    @property
    def loss(self) -> float | None:
        """Mean over all loss tokens; None if no loss was computed."""
        return self.loss_sum / self.loss_tokens if self.loss_tokens else None

    @property
    def perplexity(self) -> float | None:
        """exp(loss); infinite if it overflows."""
        if self.loss is None:
            return None
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    def add_pairs(self, sums: Mapping[str, float]) -> None:
        """Adds preference pairs. sums: from `RowPairs.sums`."""
        for name, value in sums.items():
            self.pair_sums[name] = self.pair_sums.get(name, 0.0) + value

    def add_answer(self, ended: bool, scores: Mapping[str, float]) -> None:
        """Adds an answer."""
        self.answers += 1
        self.ended += ended
        for name, value in scores.items():
            mean = self.metrics.setdefault(name, Mean())
            mean.total += value
            mean.samples += 1


@dataclass
class Scores:
    """Sums over all samples, and by source and modality."""

    overall: GroupScores = field(default_factory=GroupScores)
    sources: dict[str, GroupScores] = field(default_factory=dict)
    modalities: dict[str, GroupScores] = field(default_factory=dict)

    def groups_of(self, sample: LossSample) -> tuple[GroupScores, ...]:
        """The groups that a sample belongs to."""
        return (
            self.overall,
            self.sources.setdefault(sample.source, GroupScores()),
            self.modalities.setdefault(sample.modality, GroupScores()),
        )
