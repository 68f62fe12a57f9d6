"""The metrics of a step, and their sums between two log lines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from erniekit.objectives.pairs import pair_means

_LAYER = re.compile(r"/layer_\d+(?=/)")


class RowLoss(NamedTuple):
    """A row of this process: its mean loss over loss tokens or preference pairs, and its samples."""

    loss: float
    sample_ids: Sequence[str]


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one optimizer step, over all processes except for `rows`.

    loss_sum: sum over loss_tokens, or over the preference pairs; tokens: all tokens of the rows, without padding;
    positions: the capacity of the rows in tokens; flops: 0 unless they are counted (`erniekit.train.flops`);
    modality_tokens: tokens of each modality; expert_counts: tokens routed to each expert, int64 [experts], by name
    ("layer_1/text"); router_sums: sums over the tokens of the modality in their name ("z_loss/text",
    "entropy/layer_1/vision"); router_losses: losses of the step ("orthogonal_loss/text"); pair_sums: sums over
    preference pairs (`RowPairs.sums`); is_skipped: the step had no update, and some losses are not finite; rows: the
    rows of this process that have a loss.
    """

    loss_sum: float
    loss_tokens: int
    tokens: int
    positions: int
    gradient_norm: float
    seconds: float
    data_seconds: float
    flops: float = 0.0
    modality_tokens: dict[str, int] = field(default_factory=dict)
    expert_counts: dict[str, np.ndarray] = field(default_factory=dict)
    router_sums: dict[str, float] = field(default_factory=dict)
    router_losses: dict[str, float] = field(default_factory=dict)
    pair_sums: dict[str, float] = field(default_factory=dict)
    is_skipped: bool = False
    rows: Sequence[RowLoss] = ()

    @property
    def loss(self) -> float:
        """Mean over the loss tokens, or the preference pairs."""
        return self.loss_sum / (self.pair_sums["pairs"] if self.pair_sums else self.loss_tokens)


@dataclass
class MetricsAccumulator:
    """Sums over the steps since the last log line.

    They are saved in checkpoints, so that resuming does not change the next log line, except for times. Steps without
    an update only count for times, tokens and positions.
    """

    steps: int = 0
    loss_sum: float = 0.0
    loss_tokens: int = 0
    tokens: int = 0
    positions: int = 0
    gradient_norm: float = 0.0
    seconds: float = 0.0
    data_seconds: float = 0.0
    flops: float = 0.0
    modality_tokens: dict[str, int] = field(default_factory=dict)
    expert_counts: dict[str, list[int]] = field(default_factory=dict)
    router_sums: dict[str, float] = field(default_factory=dict)
    router_losses: dict[str, float] = field(default_factory=dict)
    pair_sums: dict[str, float] = field(default_factory=dict)
    skipped: int = 0

    def add(self, step: StepMetrics) -> None:
        """Add a step."""
        self.steps += 1
        self.tokens += step.tokens
        self.positions += step.positions
        self.seconds += step.seconds
        self.data_seconds += step.data_seconds
        self.flops += step.flops
        if step.is_skipped:
            self.skipped += 1
            return
        self.loss_sum += step.loss_sum
        self.loss_tokens += step.loss_tokens
        self.gradient_norm += step.gradient_norm
        for name, counts in step.expert_counts.items():
            before = np.asarray(self.expert_counts.get(name, 0), np.int64)
            self.expert_counts[name] = (before + counts).tolist()
        _add(self.modality_tokens, step.modality_tokens)
        _add(self.router_sums, step.router_sums)
        _add(self.router_losses, step.router_losses)
        _add(self.pair_sums, step.pair_sums)

    def scalars(self) -> dict[str, float]:
        """Means and shares by their TensorBoard names.

        The loss is the mean over all loss tokens or preference pairs of these steps. Gradient norm, loss tokens and
        times are means over the steps. Unused positions are a share of all positions. The expert load is the load of
        the busiest expert over the mean load (1 is perfect balance); a dead expert had no token. Router losses are
        unweighted sums over all layers; they and the entropy (in nats) are means over the tokens of the modality, and
        the orthogonal loss is a mean over the steps. For pairs, see `pair_means`. If all steps were skipped, there are
        no losses.
        """
        scalars = {
            "train/tokens_per_second": self.tokens / self.seconds,
            "train/step_seconds": self.seconds / self.steps,
            "data/unused_positions": 1 - self.tokens / self.positions,
            "train/data_seconds": self.data_seconds / self.steps,
        }
        updates = self.steps - self.skipped
        if not updates:
            return scalars
        scalars = {
            "train/loss": self.loss_sum / (self.pair_sums["pairs"] if self.pair_sums else self.loss_tokens),
            "train/gradient_norm": self.gradient_norm / updates,
            "train/loss_tokens": self.loss_tokens / updates,
            **scalars,
        }
        for name, counts in self.expert_counts.items():
            if sum(counts):
                scalars[f"expert_load/{name}"] = max(counts) * len(counts) / sum(counts)
                scalars[f"router/dead_experts/{name}"] = float(counts.count(0))
        for name, total in self.router_sums.items():
            tokens = self.modality_tokens[name.rpartition("/")[2]]
            if tokens:
                scalars[f"router/{name}"] = total / tokens
        for name, total in self.router_losses.items():
            scalars[f"router/{name}"] = total / updates
        return scalars | pair_means(self.pair_sums)

    def expert_shares(self) -> dict[str, list[float]]:
        """The share of routed tokens that went to each expert, by layer and modality."""
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


def summarize_layers(scalars: Mapping[str, float], *, detail: bool) -> dict[str, float]:
    """Add minimum, mean and maximum over the layers, with names such as "router/entropy/text/mean".

    detail: also keep the values of single layers, such as "router/entropy/layer_1/text".
    """
    by_name: dict[str, list[float]] = {}
    for name, value in scalars.items():
        found = _LAYER.search(name)
        if found is not None:
            by_name.setdefault(name[: found.start()] + name[found.end() :], []).append(value)
    summaries = {
        f"{name}/{kind}": summarize(values)
        for name, values in by_name.items()
        for kind, summarize in (("min", min), ("mean", fmean), ("max", max))
    }
    kept = {name: value for name, value in scalars.items() if detail or _LAYER.search(name) is None}
    return kept | summaries
