"""Metrics of preference pairs: sums over a row, and the logged means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor

METRIC_DIVISORS = {
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
"""The metrics of pairs: the count by which each sum is divided for a mean."""


@dataclass(frozen=True)
class RowPairs:
    """Sums of metrics over the pairs of one row.

    metrics: float32 scalars on the device, by the names of METRIC_DIVISORS; counts: the divisors of the row.
    """

    metrics: Mapping[str, Tensor]
    counts: Mapping[str, int]

    def zeros(self) -> RowPairs:
        """The same names with zeros, for a row that another process counts."""
        metrics = {name: paddle.zeros_like(value) for name, value in self.metrics.items()}
        return RowPairs(metrics, dict.fromkeys(self.counts, 0))

    def sums(self) -> dict[str, float]:
        """`metrics` and `counts` on the host, with the same names for every row. Synchronises with the device."""
        values = paddle.stack(list(self.metrics.values())).numpy().astype(np.float64).tolist()
        counts = {name: float(count) for name, count in self.counts.items()}
        return dict(zip(self.metrics, values, strict=True)) | counts


def pair_means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means from `RowPairs.sums`, which can be summed over rows, steps and processes in any order.

    A reward is beta times the log-ratio to the reference model. Without a reference model it is beta times the
    log-probability, per token if the loss is. Accuracy is the share of pairs whose chosen answer has the larger
    reward. `logps` are summed over an answer. `logps/kl` is the mean log-ratio per token of both answers: an estimate
    of the KL divergence from the reference model, exact only for answers sampled from the policy.
    """
    return {
        name: sums[name] / sums[per] for name, per in METRIC_DIVISORS.items() if name in sums and sums[per]
    }
