"""What all peers share: the rows that erniekit trains on, its settings, and a trainer that takes turns."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, set_seed

from tools.bench.peers.turns import Turns
from tools.bench.peers.workloads import BETAS, CLIP_NORM, EPSILON, LEARNING_RATE, THREADS, WEIGHT_DECAY

IGNORE = -100
Row = dict[str, np.ndarray]


def start(description: str | None, hows: list[str]) -> tuple[argparse.Namespace, Turns]:
    """Read the command line of a peer, and set threads and seeds."""
    turns = Turns()
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("how", choices=hows)
    parser.add_argument("--checkpointing", action="store_true", help="TRL's default")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--threads", type=int, default=THREADS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    set_seed(42)
    return arguments, turns


def load_rows(directory: Path) -> list[Row]:
    """The rows of the run. `labels` are what each position must predict."""
    rows: dict[int, Row] = {}
    with np.load(directory / "rows.npz") as file:
        for key in file:
            number, name = key.split(".")
            rows.setdefault(int(number), {})[name] = file[key]
    return [rows[number] for number in sorted(rows)]


def bounds(row: Row) -> Iterator[tuple[int, int]]:
    """Where each document begins and ends."""
    ends = row["cu_seqlens"].tolist()
    return pairwise(ends)


def hf_labels(row: Row) -> np.ndarray:
    """Labels as transformers takes them, which shifts them itself: at the position of the predicted token."""
    labels = np.full_like(row["labels"], IGNORE)
    labels[1:] = row["labels"][:-1]
    labels[row["cu_seqlens"][:-1]] = IGNORE
    return labels


def trainer_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of all trainers: the settings of erniekit's run, and nothing that writes or reports."""
    return {
        "output_dir": str(arguments.directory / "peer"),
        "use_cpu": True,
        "bf16": arguments.bf16,
        "gradient_checkpointing": arguments.checkpointing,
        "per_device_train_batch_size": 1,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_epsilon": EPSILON,
        "max_grad_norm": CLIP_NORM,
        "lr_scheduler_type": "constant",
        "max_steps": 100_000,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


class TakesTurns:
    """Mixed into a trainer: `batches` are the samples of each step, `tokens` their real tokens."""

    batches: list[list[int]]
    tokens: list[int]
    loss: float

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """The step of the trainer; keeps its loss."""
        loss: torch.Tensor = super().training_step(*arguments, **options)  # type: ignore[misc]
        self.loss = float(loss)
        return loss

    def get_train_dataloader(self) -> DataLoader:
        """The trainer's own collator over the batches."""
        this: Any = self
        loader = DataLoader(this.train_dataset, batch_sampler=self.batches, collate_fn=this.data_collator)
        return this.accelerator.prepare(loader)


class TurnCallback(TrainerCallback):
    """Ends each step of a trainer in the turns."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Wait for the next turn, or stop."""
        tokens = self.trainer.tokens[(state.global_step - 1) % len(self.trainer.tokens)]
        control.should_training_stop = not self._turns.step_done(tokens, self.trainer.loss)
        return control


def train_in_turns(
    trainer: Any, callback: TurnCallback, turns: Turns, batches: list[list[int]], tokens: list[int]
) -> None:
    """Run a trainer over the batches. With a batch sampler of its own it takes them in order."""
    trainer.batches, trainer.tokens, callback.trainer = batches, tokens, trainer
    if turns.ready():
        trainer.train()


def loop_by_hand(
    model: torch.nn.Module, rows: list[Row], step: Callable[[Row], torch.Tensor], turns: Turns
) -> None:
    """Forward, backward, clipping and fused AdamW for each row; `step` returns the loss."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)
    goes_on = turns.ready()
    while goes_on:
        for row in rows:
            loss = step(row)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            goes_on = turns.step_done(len(row["input_ids"]), loss.item())
            if not goes_on:
                return
