"""The length and the learning rate of a run, computed before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from erniekit.config import Config
from erniekit.config.rules import tenth_of
from erniekit.data.load.loader import EPOCH_TOLERANCE
from erniekit.data.load.rows import StoredRows
from erniekit.data.load.stream import StreamedRows
from erniekit.display.text import counted
from erniekit.errors import ConfigError
from erniekit.optim.schedule import Schedule, warmup_steps
from erniekit.train.activations import RowShape


@dataclass(frozen=True)
class RunPlan:
    """Length and learning rate of a run.

    rows, documents, tokens: their numbers in the first epoch; rows is None for a stream, which has no known length.
    epochs: None if train.max_steps sets the length.
    """

    total_steps: int
    epochs: float | None
    rows: int | None
    documents: int
    tokens: int
    schedule: Schedule


def plan_run(config: Config, rows: StoredRows | StreamedRows) -> RunPlan:
    """Count the steps: train.max_steps, or the rows of all epochs over the rows of a step, rounded up.

    Raises ConfigError if the schedule does not fit into the steps.
    """
    train, settings = config.train, config.schedule
    count, documents, tokens = None, 0, 0
    if isinstance(rows, StoredRows):
        plan = rows.plan(0)
        count, documents = len(plan), sum(len(row) for row in plan)
        tokens = sum(int(rows.dataset.lengths[list(row)].sum()) for row in plan)
    if train.max_steps is not None:
        total = train.max_steps
    else:
        assert isinstance(rows, StoredRows), "a stream has max_steps: the schema asks for it"
        total = math.ceil(rows_in_epochs(rows, train.epochs) / config.num_rows())
    schedule = Schedule(
        type=settings.type,
        peak=config.optimizer.learning_rate,
        minimum=settings.min_learning_rate,
        total_steps=total,
        warmup_steps=warmup_steps(total, settings.warmup_steps, settings.warmup_ratio),
        decay_ratio=settings.decay_ratio,
    )
    _check_schedule(schedule)
    return RunPlan(
        total_steps=total,
        epochs=train.epochs if train.max_steps is None else None,
        rows=count,
        documents=documents,
        tokens=tokens,
        schedule=schedule,
    )


def largest_row(rows: StoredRows | StreamedRows, max_length: int, merge_size: int = 1) -> RowShape | None:
    """Upper bounds of the sizes of a packed sequence, for any order of the data; None for a stream.

    merge_size: patches per side of a token.
    """
    if not isinstance(rows, StoredRows):
        return None
    lengths, patches = rows.dataset.lengths, rows.dataset.patches
    media = patches / merge_size**2
    tokens = min(max_length, int(lengths.sum()))
    # The share of images in a sequence is at most the largest share in a document.
    most = min(float(media.sum()), tokens * float((media / np.maximum(1, lengths)).max(initial=0)))
    return RowShape(tokens, math.ceil(min(tokens, most)), tokens, _typical(lengths), _typical(patches))


def _typical(sizes: npt.NDArray[np.int64]) -> int:
    """The median size, weighted by the sizes themselves; 0 if they are all zero."""
    ordered = np.sort(sizes)
    sums = np.cumsum(ordered)
    return int(ordered[np.searchsorted(sums, sums[-1] / 2)]) if len(ordered) and sums[-1] else 0


def _check_schedule(schedule: Schedule) -> None:
    total, warmup = schedule.total_steps, schedule.warmup_steps
    if warmup > total:
        raise ConfigError(
            f"schedule.warmup_steps is {warmup:,}, but the data and train.epochs give a run of "
            f"{counted(total, 'step')}, which would end during the warm-up. Set schedule.warmup_steps: "
            f"{tenth_of(total)}, or 0 with schedule.warmup_ratio: 0.1, which fits any number of steps"
        )
    if schedule.type == "wsd" and warmup + schedule.decay_steps > total:
        raise ConfigError(
            f"schedule.decay_ratio is {schedule.decay_ratio:g}, which gives {counted(schedule.decay_steps, 'step')} of "
            f"decay; with {counted(warmup, 'step')} of warm-up this is more than the {counted(total, 'step')} of the "
            "run. Lower one of them"
        )


def rows_in_epochs(rows: StoredRows, epochs: float) -> int:
    """The number of rows in `epochs` epochs, rounded up."""
    whole = math.floor(epochs)
    drawn = sum(rows.rows_per_epoch(epoch) for epoch in range(whole))
    if epochs > whole:
        drawn += math.ceil((epochs - whole - EPOCH_TOLERANCE) * rows.rows_per_epoch(whole))
    return drawn
