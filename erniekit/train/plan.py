"""The length and the learning rate of a run, computed before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from erniekit.config import Config
from erniekit.config.rules import tenth_of
from erniekit.data.load.loader import EPOCH_TOLERANCE
from erniekit.data.load.rows import StoredRows
from erniekit.data.load.stream import StreamedRows
from erniekit.display.text import counted
from erniekit.errors import ConfigError
from erniekit.optim.schedule import Schedule, warmup_steps


@dataclass(frozen=True)
class RunPlan:
    """Length and learning rate of a run.

    rows: the number of rows in the first epoch, which hold `documents` documents of `tokens` tokens; None for a
    stream, which has no known length. epochs: None where train.max_steps sets the length.
    """

    total_steps: int
    epochs: float | None
    rows: int | None
    documents: int
    tokens: int
    schedule: Schedule


def plan_run(config: Config, rows: StoredRows | StreamedRows) -> RunPlan:
    """Count the steps: train.max_steps, or the rows of all epochs over the rows of a step, rounded up.

    Raises ConfigError where the schedule does not fit into the steps.
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
    """The number of rows in `epochs` epochs. A fraction of an epoch is its first rows, rounded up."""
    whole = math.floor(epochs)
    drawn = sum(rows.rows_per_epoch(epoch) for epoch in range(whole))
    if epochs > whole:
        drawn += math.ceil((epochs - whole - EPOCH_TOLERANCE) * rows.rows_per_epoch(whole))
    return drawn
