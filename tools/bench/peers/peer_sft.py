"""A peer of supervised fine-tuning: TRL's trainer, or a loop by hand on transformers' model.

    python -m tools.bench.peers.peer_sft DIRECTORY padded|packed|by-hand [--checkpointing] [--bf16]

Every step trains on the documents of one of erniekit's rows. padded: `SFTTrainer` as it is, the documents a padded
batch. packed: `SFTTrainer` with `packing`, the row as it is. by-hand: a loop over the packed rows, with `packed.py`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from tools.bench.peers.packed import BY_DOCUMENT, cross_entropy
from tools.bench.peers.peer import (
    IGNORE,
    Row,
    TakesTurns,
    TurnCallback,
    bounds,
    hf_labels,
    load_rows,
    loop_by_hand,
    start,
    train_in_turns,
    trainer_settings,
)
from tools.bench.peers.turns import Turns


def main() -> None:
    """Prepare, then take turns."""
    arguments, turns = start(__doc__, ["padded", "packed", "by-hand"])
    by_hand = arguments.how == "by-hand"
    model = load_model(arguments.directory, BY_DOCUMENT if by_hand else "sdpa")
    rows = load_rows(arguments.directory)
    if by_hand:
        loop_by_hand(model, rows, partial(loss_of, model, arguments.bf16), turns)
    else:
        train_with_trl(model, rows, arguments, turns)


def load_model(directory: Path, attention: str) -> Any:
    """The model of a workload, in float32."""
    return AutoModelForCausalLM.from_pretrained(
        directory / "transformers", dtype=torch.float32, attn_implementation=attention
    )


def loss_of(model: Any, bf16: bool, row: Row) -> torch.Tensor:
    """Mean loss of a packed row."""
    labels = torch.tensor(row["labels"])
    kept = (labels != IGNORE).nonzero().squeeze(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = model.model(
            input_ids=torch.tensor(row["input_ids"])[None],
            position_ids=torch.tensor(row["position_ids"][:1]),
            cu_seq_lens_q=torch.tensor(row["cu_seqlens"]),
            use_cache=False,
        ).last_hidden_state[0]
        return cross_entropy(hidden[kept], model.lm_head.weight, labels[kept])


class Trainer(TakesTurns, SFTTrainer):
    """TRL's trainer in turns."""


def train_with_trl(model: Any, rows: list[Row], arguments: argparse.Namespace, turns: Turns) -> None:
    """`SFTTrainer` over the rows."""
    is_packed = arguments.how == "packed"
    records: list[dict[str, Any]] = []
    batches: list[list[int]] = []
    for row in rows:
        ids, labels = row["input_ids"], hf_labels(row)
        documents = [
            {"input_ids": ids[first:last].tolist(), "labels": labels[first:last].tolist()}
            for first, last in bounds(row)
        ]
        if is_packed:
            lengths = [last - first for first, last in bounds(row)]
            documents = [{"input_ids": ids.tolist(), "labels": labels.tolist(), "seq_lengths": lengths}]
        batches.append(list(range(len(records), len(records) + len(documents))))
        records += documents
    callback = TurnCallback(turns)
    trainer = Trainer(
        model=model,
        args=SFTConfig(
            **trainer_settings(arguments),
            packing=is_packed,
            max_length=max(len(row["input_ids"]) for row in rows),
            dataset_kwargs={"skip_prepare_dataset": True},
            **({"router_aux_loss_coef": 0.0} if hasattr(model.config, "moe_num_experts") else {}),
        ),
        train_dataset=Dataset.from_list(records),
        processing_class=AutoTokenizer.from_pretrained(arguments.directory / "transformers"),
        callbacks=[callback],
    )
    train_in_turns(trainer, callback, turns, batches, [len(row["input_ids"]) for row in rows])


if __name__ == "__main__":
    main()
