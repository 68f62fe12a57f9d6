"""Figures of preference pairs: sums over a row, and the means that are logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor

# What each sum is divided by to become a mean.
PER = {
    "loss/preference": "pairs",
    "loss/sft": "chosen_tokens",
    "rewards/chosen": "pairs",
    "rewards/rejected": "pairs",
    "rewards/margin": "pairs",
    "rewards/accuracy": "pairs",
    "logps/chosen": "pairs",
    "logps/rejected": "pairs",
    "logps/kl": "answer_tokens",
}


@dataclass(frozen=True)
class RowPairs:
    """The pairs of one row: sums by the names of PER, float32 scalars still on the device, and what divides them."""

    figures: Mapping[str, Tensor]
    counts: Mapping[str, int]

    def nothing(self) -> RowPairs:
        """The same names with zeros, of a row that another process counts."""
        figures = {name: paddle.zeros_like(value) for name, value in self.figures.items()}
        return RowPairs(figures, dict.fromkeys(self.counts, 0))

    def sums(self) -> dict[str, float]:
        """`figures` and `counts`, see `pair_means`; the same names for every row. Waits for the device."""
        values = paddle.stack(list(self.figures.values())).numpy().astype(np.float64).tolist()
        counts = {name: float(count) for name, count in self.counts.items()}
        return dict(zip(self.figures, values, strict=True)) | counts


def pair_means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means out of `RowPairs.sums`, added up over rows, steps and processes in any order.

    Rewards are beta times the log-ratio to the reference (without one, times the log-probability, per token where the
    loss is); accuracy is the share of pairs whose chosen answer has the larger; logps are summed over an answer.
    `logps/kl` is the mean log-ratio of the tokens of both answers: an estimate of the divergence from the reference
    that is exact only for answers which the policy itself would give.
    """
    return {name: sums[name] / sums[per] for name, per in PER.items() if name in sums and sums[per]}
