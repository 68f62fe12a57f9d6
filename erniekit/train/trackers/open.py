"""Opens the trackers of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from erniekit.config import Config
from erniekit.train.trackers.hosted import SwanlabTracker, WandbTracker
from erniekit.train.trackers.layout import Category
from erniekit.train.trackers.tensorboard import TensorBoardTracker
from erniekit.train.trackers.tracker import Tracker, report_failure


def open_trackers(
    config: Config, layout: Sequence[Category], start_step: int, log: Callable[[str], None]
) -> list[Tracker]:
    """The trackers of section `log`. One that cannot be opened, for example without a network, is reported.

    layout: of the charts; start_step: steps already done.
    """
    settings, run_dir = config.log, Path(config.train.output_dir)
    openers: list[tuple[str, Callable[[], Tracker]]] = []
    if settings.tensorboard:
        openers.append(("TensorBoard", partial(TensorBoardTracker, run_dir, layout, start_step)))
    if settings.wandb is not None:
        openers.append(("wandb", partial(WandbTracker, settings.wandb, config)))
    if settings.swanlab is not None:
        openers.append(("swanlab", partial(SwanlabTracker, settings.swanlab, config)))
    trackers = []
    for name, opener in openers:
        try:
            trackers.append(opener())
        except Exception as error:  # whatever a library raises must not end the run
            report_failure(name, error, log)
    return trackers
