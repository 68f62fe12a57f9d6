"""A peer of preference training with LoRA: TRL's trainer, or a loop by hand on transformers' model with PEFT.

    python -m tools.bench.peers.peer_dpo DIRECTORY padded|by-hand [--checkpointing] [--bf16]

Every step trains on the pairs of one of erniekit's rows, and begins with erniekit's adapters. padded: `DPOTrainer` as
it is. by-hand: both answers of every pair are documents of a packed row, with `packed.py`. The reference is the model
without its adapters, as in erniekit. Tokens are counted as erniekit has them: the prompt of a pair once, although the
peers compute it twice.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from tools.bench.peers.packed import BY_DOCUMENT, log_probs
from tools.bench.peers.peer import (
    IGNORE,
    Row,
    TakesTurns,
    TurnCallback,
    bounds,
    load_rows,
    loop_by_hand,
    start,
    train_in_turns,
    trainer_settings,
)
from tools.bench.peers.turns import Turns
from tools.bench.peers.workloads import DPO_BETA

Pair = dict[str, list[int]]


def main() -> None:
    """Prepare, then take turns."""
    arguments, turns = start(__doc__, ["padded", "by-hand"])
    by_hand = arguments.how == "by-hand"
    model = load_model(arguments.directory, BY_DOCUMENT if by_hand else "sdpa")
    rows = load_rows(arguments.directory)
    if by_hand:
        loop_by_hand(model, rows, partial(loss_of, model, arguments.bf16), turns)
    else:
        train_with_trl(model, rows, arguments, turns)


def load_model(directory: Path, attention: str) -> Any:
    """The model of a workload in float32, with the first adapters of erniekit's run."""
    base = AutoModelForCausalLM.from_pretrained(
        directory / "transformers", dtype=torch.float32, attn_implementation=attention
    )
    return PeftModel.from_pretrained(base, directory / "adapter", is_trainable=True)


def pairs_of(row: Row) -> list[Pair]:
    """Prompt, chosen and rejected ids. Each branch of a row begins with the prediction of its answer's first token."""
    ids, labels = row["input_ids"], row["labels"]
    found = []
    for (begin, end), (first, second) in zip(bounds(row), row["branches"].tolist(), strict=True):
        chosen, rejected = labels[first:second], labels[second:end]
        found.append(
            {
                "prompt_ids": ids[begin : first + 1].tolist(),
                "chosen_ids": chosen[chosen != IGNORE].tolist(),
                "rejected_ids": rejected[rejected != IGNORE].tolist(),
            }
        )
    return found


def loss_of(model: Any, bf16: bool, row: Row) -> torch.Tensor:
    """Mean DPO loss of the pairs of a row."""
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    lengths, answers = [], []
    for pair in pairs_of(row):
        for answer in (pair["chosen_ids"], pair["rejected_ids"]):
            prompt = pair["prompt_ids"]
            ids += prompt + answer
            labels += [IGNORE] * (len(prompt) - 1) + answer + [IGNORE]
            positions += range(len(prompt) + len(answer))
            lengths.append(len(prompt) + len(answer))
            answers.append(len(answer))
    targets = torch.tensor(labels)
    kept = (targets != IGNORE).nonzero().squeeze(1)
    base = model.get_base_model()
    inputs = {
        "input_ids": torch.tensor(ids)[None],
        "position_ids": torch.tensor(positions)[None],
        "cu_seq_lens_q": torch.tensor([0, *lengths]).cumsum(0),
        "use_cache": False,
    }

    def sums() -> torch.Tensor:
        """Log-probabilities of answers, [pairs, 2]."""
        hidden = base.model(**inputs).last_hidden_state[0, kept]
        tokens = log_probs(hidden, base.lm_head.weight, targets[kept])
        return torch.stack([part.sum() for part in tokens.split(answers)]).reshape(-1, 2)

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        with torch.no_grad(), model.disable_adapter():
            reference = sums()
        chosen, rejected = (sums() - reference).unbind(1)
    return -torch.nn.functional.logsigmoid(DPO_BETA * (chosen - rejected)).mean()


class Trainer(TakesTurns, DPOTrainer):
    """TRL's trainer in turns, over pairs that are encoded already."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def train_with_trl(model: Any, rows: list[Row], arguments: argparse.Namespace, turns: Turns) -> None:
    """`DPOTrainer` over the pairs."""
    by_row = [pairs_of(row) for row in rows]
    pairs = [pair for pairs in by_row for pair in pairs]
    batches, count = [], 0
    for found in by_row:
        batches.append(list(range(count, count + len(found))))
        count += len(found)
    callback = TurnCallback(turns)
    trainer = Trainer(
        model=model,
        args=DPOConfig(**trainer_settings(arguments), beta=DPO_BETA, max_length=None),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(arguments.directory / "transformers"),
        callbacks=[callback],
    )
    train_in_turns(trainer, callback, turns, batches, [len(row["input_ids"]) for row in rows])


if __name__ == "__main__":
    main()
