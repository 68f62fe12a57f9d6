"""The best evaluation of a run, and its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from erniekit.checkpoint.best import BEST_FILE, recorded_best, write_best
from erniekit.checkpoint.state import checkpoint_name, fingerprint
from erniekit.config import Config
from erniekit.config.choices import ANSWER_METRICS
from erniekit.display.text import clipped
from erniekit.distributed.context import DistributedContext
from erniekit.train.inputs import Inputs
from erniekit.train.progress import BestTracker, TrainerProgress

Log = Callable[[str], None]


def check_best(
    run_dir: Path,
    progress: TrainerProgress,
    metric: str | None,
    data: str,
    dist: DistributedContext,
    log: Log,
) -> None:
    """Make the best evaluation of a resumed run agree with the configuration and with the run's directory.

    metric: eval.best_metric; None: evaluations are not compared, and the best checkpoint so far is still kept. data: as
    in BestTracker.
    """
    best, again = progress.best, "the search for the best checkpoint starts again"
    if metric is not None and best.metric not in ("", metric):
        log(f"eval.best_metric was {clipped(best.metric)} and is {metric} now; {again}")
        best = BestTracker()
    elif metric is not None and best.value is not None and best.data not in ("", data):
        log(f"data.eval, or how answers to it are generated, has changed; {again}")
        best = BestTracker()
    else:
        best = existing_best(run_dir, progress, dist, log)
    progress.best = best
    # The directory may be ahead of the checkpoint, or the last run may have been killed between writing the two.
    if dist.is_main and best.value is not None:
        write_best(run_dir, best.step, best.metric, best.value)
    elif dist.is_main:
        (run_dir / BEST_FILE).unlink(missing_ok=True)


def existing_best(
    run_dir: Path, progress: TrainerProgress, dist: DistributedContext, log: Log
) -> BestTracker:
    """The best evaluation with a checkpoint: that of `progress`, or else the one before it, which best.json names.

    All processes call it together.
    """
    best = progress.best
    if best.value is None:
        return best
    missing = run_dir / checkpoint_name(best.step)
    found: list[Any] = [best.step, best.value]
    if not missing.is_dir():
        recorded = recorded_best(run_dir, best.metric)
        # The directory may be ahead of a checkpoint that is resumed.
        is_before = recorded is not None and recorded[0] <= progress.step
        found = [*recorded] if recorded is not None and is_before else [0, None]
    step, value = dist.all_gather_object(found)[0]
    if step != best.step:
        instead = (
            "the next evaluation is the best"
            if value is None
            else f"the best is {checkpoint_name(step)} again"
        )
        log(f"{missing}, the best checkpoint, does not exist; {instead}")
    return replace(best, step=step, value=value)


def best_data(config: Config, inputs: Inputs) -> str:
    """A digest of what eval.best_metric is computed from: values of other data cannot be compared."""
    parts = ["" if inputs.eval_rows is None else inputs.eval_rows.rows.dataset.fingerprint]
    if config.eval.best_metric in ANSWER_METRICS:
        parts.append(json.dumps([config.eval.samples, config.eval.max_new_tokens, config.eval.temperature]))
    return fingerprint(part.encode() for part in parts)["digest"]
