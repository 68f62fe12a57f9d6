"""The fastest layouts of a run on a number of GPUs, among those that fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

from erniekit.config.choices import SHARDS
from erniekit.errors import ConfigError
from erniekit.train.planner.gpus import Gpu
from erniekit.train.planner.job import Job, Settings, overrides
from erniekit.train.planner.roofline import StepTime, step_time

_MOST_FOUND = 5


@dataclass(frozen=True)
class FittingLayout:
    """A layout that fits. changes: the settings that differ from the run's."""

    changes: Settings
    job: Job
    time: StepTime

    @property
    def overrides(self) -> list[str]:
        """The settings that differ, as arguments of `erniekit train`."""
        return overrides(self.changes)


def search_layouts(job: Job, gpu: Gpu) -> list[FittingLayout]:
    """The layouts that fit, fastest by the roofline first; at most five.

    Tries all combinations of parallel.expert, parallel.context, parallel.shard and train.recompute that the
    configuration, the model and the number of processes permit. Rounds train.rows_per_step up if it does not divide
    evenly.
    """
    degrees = [degree for degree in range(1, job.processes + 1) if job.processes % degree == 0]
    experts = degrees if job.model.moe is not None else [1]
    shards = SHARDS if job.processes > 1 else SHARDS[:1]
    found = []
    for expert, context, shard, recompute in product(experts, degrees, shards, ("none", "auto", "layers")):
        settings: dict[str, Any] = {
            "parallel.expert": expert,
            "parallel.context": context,
            "parallel.shard": shard,
            "train.recompute": recompute,
        }
        rows = job.config.train.rows_per_step
        ranks = job.processes // context
        if rows is not None and rows % ranks:
            settings["train.rows_per_step"] = math.ceil(rows / ranks) * ranks
        layout = _layout(job, gpu, settings)
        if layout is not None:
            found.append(layout)
    # Among equally fast layouts, prefer the one with the fewest changes.
    found.sort(key=lambda layout: (-round(layout.time.tokens_per_second, 1), len(layout.changes)))
    return found[:_MOST_FOUND]


def _layout(job: Job, gpu: Gpu, settings: Settings) -> FittingLayout | None:
    """The layout of these settings; None if it breaks a rule or does not fit."""
    try:
        changed = job.changed(settings)
        if not changed.fits:
            return None
    except ConfigError:
        return None
    backward = changed.plan.backward
    if settings["train.recompute"] == "auto" and backward.num_recomputed in (0, backward.size):
        return None  # It is the same as none or layers.
    before = job.config.model_dump()
    changes = {}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        if before[section][name] != value:
            changes[key] = value
    return FittingLayout(changes, changed, step_time(changed, gpu))
