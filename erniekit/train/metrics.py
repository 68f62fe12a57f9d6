"""The figures of the steps between two log lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from erniekit.objectives.pairs import pair_means


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step.

    `loss` is the sum over its `loss_tokens`; `tokens` are all tokens of its rows, none of them padding;
    `positions` is what the rows have room for; `modality_tokens` are the tokens of each modality; `expert_counts`
    maps "layer_1/text" to the tokens that chose each expert, int64 [experts]; `router_sums` are sums over the
    tokens of the modality that their names end with ("z_loss/text", "entropy/layer_1/vision"), `router_losses` are
    losses of the step ("orthogonal_loss/text"); `pair_sums` are those of preference pairs (`RowPairs.sums`), and with
    them `loss_sum` is over pairs.
    """

    loss_sum: float
    loss_tokens: int
    tokens: int
    positions: int
    gradient_norm: float
    seconds: float
    data_seconds: float
    modality_tokens: dict[str, int] = field(default_factory=dict)
    expert_counts: dict[str, np.ndarray] = field(default_factory=dict)
    router_sums: dict[str, float] = field(default_factory=dict)
    router_losses: dict[str, float] = field(default_factory=dict)
    pair_sums: dict[str, float] = field(default_factory=dict)


@dataclass
class MetricsAccumulator:
    """Sums over the steps since the last log line. A checkpoint keeps them, so that a log line is the same
    whether or not the run was interrupted before it (times aside)."""

    steps: int = 0
    loss_sum: float = 0.0
    loss_tokens: int = 0
    tokens: int = 0
    positions: int = 0
    gradient_norm: float = 0.0
    seconds: float = 0.0
    data_seconds: float = 0.0
    modality_tokens: dict[str, int] = field(default_factory=dict)
    expert_counts: dict[str, list[int]] = field(default_factory=dict)
    router_sums: dict[str, float] = field(default_factory=dict)
    router_losses: dict[str, float] = field(default_factory=dict)
    pair_sums: dict[str, float] = field(default_factory=dict)

    def add(self, step: StepMetrics) -> None:
        """Count a step."""
        self.steps += 1
        self.loss_sum += step.loss_sum
        self.loss_tokens += step.loss_tokens
        self.tokens += step.tokens
        self.positions += step.positions
        self.gradient_norm += step.gradient_norm
        self.seconds += step.seconds
        self.data_seconds += step.data_seconds
        for name, counts in step.expert_counts.items():
            before = np.asarray(self.expert_counts.get(name, 0), np.int64)
            self.expert_counts[name] = (before + counts).tolist()
        _add(self.modality_tokens, step.modality_tokens)
        _add(self.router_sums, step.router_sums)
        _add(self.router_losses, step.router_losses)
        _add(self.pair_sums, step.pair_sums)

    def scalars(self) -> dict[str, float]:
        """Figures under their TensorBoard names.

        The loss is the mean over all loss tokens of the window, or over its preference pairs; gradient norm,
        loss tokens and times are means over its steps; unused positions are a share of all; an expert's load is that of
        the busiest expert over the mean (1 is perfect balance), a dead expert had no token. Router losses are
        unweighted and of all layers together, means over the window's tokens of the modality as is the entropy
        (in nats), and the orthogonal loss a mean over its steps. Of pairs: `pair_means`.
        """
        figures = {
            "train/loss": self.loss_sum / (self.pair_sums["pairs"] if self.pair_sums else self.loss_tokens),
            "train/gradient_norm": self.gradient_norm / self.steps,
            "train/loss_tokens": self.loss_tokens / self.steps,
            "train/tokens_per_second": self.tokens / self.seconds,
            "train/step_seconds": self.seconds / self.steps,
            "data/unused_positions": 1 - self.tokens / self.positions,
            "train/data_seconds": self.data_seconds / self.steps,
        }
        for name, counts in self.expert_counts.items():
            if sum(counts):
                figures[f"expert_load/{name}"] = max(counts) * len(counts) / sum(counts)
                figures[f"router/dead_experts/{name}"] = float(counts.count(0))
        for name, total in self.router_sums.items():
            tokens = self.modality_tokens[name.rpartition("/")[2]]
            if tokens:
                figures[f"router/{name}"] = total / tokens
        for name, total in self.router_losses.items():
            figures[f"router/{name}"] = total / self.steps
        return figures | pair_means(self.pair_sums)

    def expert_shares(self) -> dict[str, list[float]]:
        """By layer and modality, the share of the chosen slots that went to each expert."""
        return {
            f"expert_share/{name}": [count / sum(counts) for count in counts]
            for name, counts in self.expert_counts.items()
            if sum(counts)
        }

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint; MetricsAccumulator(**as_dict) is equal."""
        return asdict(self)


def _add(sums: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value
