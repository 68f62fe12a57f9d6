"""Weights & Biases and SwanLab, through their own libraries. A resumed run continues its run there."""

from __future__ import annotations

import importlib
import json
import secrets
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erniekit.config import Config
from erniekit.config.logging import SwanlabConfig, WandbConfig
from erniekit.local_files import replacing
from erniekit.train.trackers.tracker import ShownAnswer

TRACKERS_FILE = "trackers.json"
"""In a run's directory: the id of the run at each service."""
WANDB_DIR, SWANLAB_DIR = "wandb", "swanlab"
"""In a run's directory: the files of the services; Weights & Biases chooses the name of its directory."""
_ID_LENGTH = 21  # SwanLab takes ids of this length only, Weights & Biases any


def run_id(run_dir: Path, service: str) -> str:
    """The id of the run at a service: the one that it has, else a new one, which is stored in the run's directory."""
    file = run_dir / TRACKERS_FILE
    ids: dict[str, str] = {}
    if file.is_file():
        try:
            ids = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            ids = {}
    if service not in ids:
        letters = string.ascii_lowercase + string.digits
        ids[service] = "".join(secrets.choice(letters) for _ in range(_ID_LENGTH))
        with replacing(file) as stream:
            stream.write(json.dumps(ids, indent=2) + "\n")
    return ids[service]


class WandbTracker:
    """A run at Weights & Biases. Its charts have the number of steps as their axis, also after a resume."""

    name = "wandb"

    def __init__(self, settings: WandbConfig, config: Config) -> None:
        run_dir = Path(config.train.output_dir)
        self._library: Any = importlib.import_module("wandb")
        self._run: Any = self._library.init(
            project=settings.project,
            entity=settings.entity,
            name=settings.name or run_dir.resolve().name,
            group=settings.group,
            tags=settings.tags or None,
            mode="offline" if settings.mode == "offline" else None,
            dir=str(run_dir),
            id=run_id(run_dir, "wandb"),
            resume="allow",
            config=config.model_dump(mode="json"),
            allow_val_change=True,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log_scalars(self, step: int, scalars: Mapping[str, float], epoch: float | None) -> None:
        """Scalars."""
        self._run.log({"step": step, **scalars, **({} if epoch is None else {"epoch": epoch})})

    def log_shares(self, step: int, shares: Mapping[str, Sequence[float]]) -> None:
        """Histograms with one bar per expert."""
        histograms = {
            name: self._library.Histogram(np_histogram=(list(bars), [i - 0.5 for i in range(len(bars) + 1)]))
            for name, bars in shares.items()
        }
        self._run.log({"step": step, **histograms})

    def log_text(self, step: int, name: str, html: str) -> None:
        """A text as a page."""
        self._run.log({"step": step, name: self._library.Html(html)})

    def log_answers(self, step: int, answers: Sequence[ShownAnswer]) -> None:
        """A table of all answers with their images."""
        columns = ["sample", "prompt", "reference", "answer", "scores", "image"]
        rows = [
            [
                *(answer.sample_id, answer.prompt, answer.expected, answer.answer, answer.described_scores),
                self._library.Image(answer.images[0]) if answer.images else None,
            ]
            for answer in answers
        ]
        self._run.log({"step": step, "answers": self._library.Table(columns=columns, data=rows)})

    def flush(self) -> None:
        """The library writes by itself."""

    def close(self, *, failed: bool) -> None:
        """End the run, as finished or failed."""
        self._run.finish(exit_code=int(failed))


class SwanlabTracker:
    """An experiment at SwanLab."""

    name = "swanlab"

    def __init__(self, settings: SwanlabConfig, config: Config) -> None:
        run_dir = Path(config.train.output_dir)
        self._library: Any = importlib.import_module("swanlab")
        logs = run_dir / SWANLAB_DIR
        logs.mkdir(exist_ok=True)
        self._library.init(
            project=settings.project,
            workspace=settings.workspace,
            name=settings.name or run_dir.resolve().name,
            tags=settings.tags or None,
            mode="offline" if settings.mode == "offline" else None,
            logdir=str(logs),
            id=run_id(run_dir, "swanlab"),
            resume="allow",
            config=config.model_dump(mode="json"),
        )

    def log_scalars(self, step: int, scalars: Mapping[str, float], epoch: float | None) -> None:
        """Scalars."""
        self._library.log({**scalars, **({} if epoch is None else {"epoch": epoch})}, step=step)

    def log_shares(self, step: int, shares: Mapping[str, Sequence[float]]) -> None:
        """Not shown: SwanLab has no histograms."""

    def log_text(self, step: int, name: str, html: str) -> None:
        """Not shown: the configuration is part of the experiment, and SwanLab has no texts with markup."""

    def log_answers(self, step: int, answers: Sequence[ShownAnswer]) -> None:
        """The images with their answers, and answers without images as texts."""
        images = [
            self._library.Image(answer.images[0], caption=describe_answer(answer))
            for answer in answers
            if answer.images
        ]
        texts = [self._library.Text(describe_answer(answer)) for answer in answers if not answer.images]
        shown = {"answers/images": images, "answers/texts": texts}
        self._library.log({name: items for name, items in shown.items() if items}, step=step)

    def flush(self) -> None:
        """The library writes by itself."""

    def close(self, *, failed: bool) -> None:
        """End the experiment."""
        if failed:
            self._library.finish(state="crashed", error="the run ended with an error")
        else:
            self._library.finish()


def describe_answer(answer: ShownAnswer) -> str:
    """Sample, reference and answer in three lines."""
    return f"{answer.sample_id}\nreference: {answer.expected}\nanswer: {answer.answer}"
