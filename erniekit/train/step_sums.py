"""Metrics of a step, summed over its rows and over all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle

from erniekit.data.load.batch import PackedBatch
from erniekit.objectives.pairs import RowPairs
from erniekit.objectives.routing import RowRouting
from erniekit.train.metrics import RowLoss
from erniekit.upload import AsyncUpload


class RowResult(NamedTuple):
    """The output of an objective for a row, without the graph.

    upload: of the row; its memory is in use until the host has read the output.
    """

    loss_sum: paddle.Tensor
    routing: RowRouting | None
    pairs: RowPairs | None
    upload: AsyncUpload


class StepSums(NamedTuple):
    """Metrics of a step: row_losses of the rows of this process, all others over all processes."""

    row_losses: list[float]
    loss: float
    flops: float
    expert_counts: dict[str, np.ndarray]
    router_sums: dict[str, float]
    pair_sums: dict[str, float]


def sum_step(
    results: Sequence[RowResult], flops: float, all_reduce: Callable[[dict[str, Any]], dict[str, Any]]
) -> StepSums:
    """Read the results of this process's rows from the device, and sum them over all processes.

    flops: of the rows of this process. all_reduce: sums numbers or arrays of one dtype, by name, over all processes.
    The loss is NaN if the loss of any row is not finite.
    """
    losses = [float(result.loss_sum.item()) for result in results]
    routings = [result.routing for result in results if result.routing is not None]
    pairs = [result.pairs for result in results if result.pairs is not None]
    expert_counts = all_reduce(_sum_by_name(routing.expert_counts() for routing in routings))
    is_finite = all(map(math.isfinite, losses))
    own = {"loss": math.fsum(losses) if is_finite else math.nan, "flops": flops}
    own |= _sum_by_name(routing.router_sums() for routing in routings)
    sums = {name: float(value) for name, value in all_reduce(own).items()}
    pair_sums = all_reduce(_sum_by_name(row_pairs.sums() for row_pairs in pairs))
    return StepSums(
        row_losses=losses,
        loss=sums.pop("loss"),
        flops=sums.pop("flops"),
        expert_counts=expert_counts,
        router_sums=sums,
        pair_sums={name: float(value) for name, value in pair_sums.items()},
    )


def row_losses(batches: Sequence[PackedBatch], losses: Sequence[float]) -> list[RowLoss]:
    """The mean loss of each row that has one, per token or preference pair. losses: the sums of the rows."""
    counts = [len(batch.branches) or batch.num_loss_tokens for batch in batches]
    return [
        RowLoss(loss / count, batch.sample_ids)
        for batch, loss, count in zip(batches, losses, counts, strict=True)
        if count
    ]


def _sum_by_name(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total
