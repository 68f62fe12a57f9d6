"""A peer of LoRA on text and images: transformers' trainer with PEFT, or a loop by hand on the same model.

    python -m tools.bench.peers.peer_vl DIRECTORY padded|sorted|by-hand [--checkpointing] [--bf16]

padded: `Trainer` over the documents of each of erniekit's rows as a padded batch. sorted: `Trainer` over batches of as
many tokens whose documents are of like length. by-hand: a loop over the packed rows, with `packed.py`. Images are
decoded beforehand. PEFT adapts gate and up of an expert with one adapter, erniekit with two.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Ernie4_5_VLMoeForConditionalGeneration, TrainingArguments
from transformers import Trainer as TransformersTrainer

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
from tools.bench.peers.workloads import LORA_ALPHA, LORA_RANK

LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
# Statistics of the pixels of the released models.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PATCHES_PER_TOKEN = 4
Part = dict[str, np.ndarray]


def main() -> None:
    """Prepare, then take turns."""
    arguments, turns = start(__doc__, ["padded", "sorted", "by-hand"])
    by_hand = arguments.how == "by-hand"
    base = load_base(arguments.directory / "transformers", BY_DOCUMENT if by_hand else "sdpa")
    lora = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=LINEARS, target_parameters=EXPERTS)
    model = get_peft_model(base, lora)
    rows = load_rows(arguments.directory)
    if by_hand:
        loop_by_hand(model, rows, partial(loss_of, base, arguments.bf16), turns)
    else:
        train_with_trainer(model, rows, arguments, turns)


def load_base(directory: Path, attention: str) -> Any:
    """The model without adapters, in float32."""
    return Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation={"text_config": attention, "vision_config": "sdpa"},
    )


def loss_of(base: Any, bf16: bool, row: Row) -> torch.Tensor:
    """Mean loss of a packed row."""
    labels = torch.tensor(row["labels"])
    kept = (labels != IGNORE).nonzero().squeeze(1)
    ids = torch.tensor(row["input_ids"])[None]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = base.model(
            input_ids=ids,
            position_ids=torch.tensor(row["position_ids"])[:, None],
            mm_token_type_ids=(ids == base.config.image_token_id).int(),
            moe_mm_token_type_ids=torch.tensor(row["modality"]).int()[None],
            cu_seq_lens_q=torch.tensor(row["cu_seqlens"]),
            use_cache=False,
            **images(row["patches"], row["grid_thw"]),
        ).last_hidden_state[0]
        return cross_entropy(hidden[kept], base.lm_head.weight, labels[kept])


def images(patches: np.ndarray, grids: np.ndarray) -> dict[str, torch.Tensor]:
    """Normalised patches and their grids, as the model takes them; nothing without images."""
    if not len(grids):
        return {}
    area = patches.shape[1] // len(MEAN)
    mean, std = (np.repeat(np.array(values, np.float32), area) for values in (MEAN, STD))
    pixels = (patches / np.float32(255) - mean) / std
    return {
        "pixel_values": torch.from_numpy(pixels),
        "image_grid_thw": torch.from_numpy(grids.astype(np.int64)),
    }


def documents_of(row: Row, image_token: int) -> list[Part]:
    """The documents of a row, each with its own images."""
    ids, labels, grids = row["input_ids"], hf_labels(row), row["grid_thw"]
    ends = np.cumsum(grids.prod(1))
    found, image, patch = [], 0, 0
    for first, last in bounds(row):
        # As many images as the placeholders of the document need.
        patches = PATCHES_PER_TOKEN * int((ids[first:last] == image_token).sum())
        next_image = int(np.searchsorted(ends, patch + patches, "right"))
        found.append(
            {
                "ids": ids[first:last],
                "labels": labels[first:last],
                "modality": row["modality"][first:last],
                "patches": row["patches"][patch : patch + patches],
                "grids": grids[image:next_image],
            }
        )
        image, patch = next_image, patch + patches
    return found


def sorted_batches(documents: list[Part], budget: float) -> list[list[int]]:
    """Batches of about `budget` tokens of documents of like length, in a seeded order."""
    batches: list[list[int]] = [[]]
    filled = 0
    for number in np.argsort([len(part["ids"]) for part in documents], kind="stable").tolist():
        length = len(documents[number]["ids"])
        if filled + length / 2 > budget:
            batches.append([])
            filled = 0
        batches[-1].append(number)
        filled += length
    np.random.default_rng(0).shuffle(batches)
    return batches


def padded(parts: list[Part], image_token: int) -> dict[str, torch.Tensor]:
    """Documents as a batch padded on the right."""
    lengths = [len(part["ids"]) for part in parts]

    def matrix(name: str, filler: int) -> np.ndarray:
        filled = np.full((len(parts), max(lengths)), filler, np.int64)
        for number, part in enumerate(parts):
            filled[number, : lengths[number]] = part[name]
        return filled

    ids = matrix("ids", 0)
    batch = {
        "input_ids": ids,
        "attention_mask": (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64),
        "labels": matrix("labels", IGNORE),
        "mm_token_type_ids": (ids == image_token).astype(np.int32),
        "moe_mm_token_type_ids": matrix("modality", 0).astype(np.int32),
    }
    patches, grids = (np.concatenate([part[name] for part in parts]) for name in ("patches", "grids"))
    return {name: torch.from_numpy(value) for name, value in batch.items()} | images(patches, grids)


class Trainer(TakesTurns, TransformersTrainer):
    """transformers' trainer in turns."""


def train_with_trainer(model: Any, rows: list[Row], arguments: argparse.Namespace, turns: Turns) -> None:
    """`Trainer` over padded batches."""
    image_token = model.config.image_token_id
    by_row = [documents_of(row, image_token) for row in rows]
    documents = [document for documents in by_row for document in documents]
    if arguments.how == "sorted":
        batches = sorted_batches(documents, sum(len(part["ids"]) for part in documents) / len(rows))
    else:
        ends = np.cumsum([0, *map(len, by_row)]).tolist()
        batches = [list(range(*pair)) for pair in pairwise(ends)]
    callback = TurnCallback(turns)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**trainer_settings(arguments)),
        train_dataset=Dataset.from_list([{"number": number} for number in range(len(documents))]),
        data_collator=lambda items: padded([documents[item["number"]] for item in items], image_token),
        callbacks=[callback],
    )
    tokens = [sum(len(documents[number]["ids"]) for number in batch) for batch in batches]
    train_in_turns(trainer, callback, turns, batches, tokens)


if __name__ == "__main__":
    main()
