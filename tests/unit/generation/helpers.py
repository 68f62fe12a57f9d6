"""Small models and rows of prompts for the tests of erniekit.generation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from erniekit.create.create import create_model
from erniekit.generation.generate import inference_mode
from erniekit.models.ernie import ErnieModel
from erniekit.models.row import RowInputs

TEXT = "Which digit is this? The number is 7. Give the digit and nothing else. One two three four five six.\n"


def make_model(directory: Path, family: str, *overrides: str, std: float = 0.15, seed: int = 1) -> Path:
    """A checkpoint of a tiny shape, with weights large enough that the next token is decided clearly."""
    text = directory.parent / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    smaller = ["hidden_size=128", "intermediate_size=64", "num_hidden_layers=2"]
    if family == "vl":
        smaller += ["num_attention_heads=1"]
    create_model(f"tiny-{family}", directory, [text], seed=seed, std=std, overrides=[*smaller, *overrides])
    return directory


def write_chats(path: Path, chats: Sequence[tuple[Any, str]]) -> Path:
    """A data file of (question, answer) pairs."""
    lines = []
    for question, answer in chats:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def prompt(length: int, seed: int, image: tuple[int, int] | None = None) -> RowInputs:
    """A row of one prompt of random text; `image` (height, width) in patches stands at its third token."""
    rng = np.random.default_rng(seed)
    modality, positions = np.zeros(length, np.int8), np.tile(np.arange(length), (3, 1))
    media_positions, grid = np.zeros(0, np.int64), np.zeros((0, 3), np.int32)
    if image is not None:
        rows, columns = image[0] // 2, image[1] // 2
        media_positions, grid = np.arange(3, 3 + rows * columns), np.array([[1, *image]], np.int32)
        modality[2 : 4 + rows * columns] = 1
        positions[0, media_positions] = 3
        positions[1, media_positions] = 3 + np.repeat(np.arange(rows), columns)
        positions[2, media_positions] = 3 + np.tile(np.arange(columns), rows)
        rest = length - 3 - rows * columns
        positions[:, length - rest :] = 3 + max(rows, columns) + np.arange(rest)
    patches = rng.integers(0, 256, (int(grid.prod(-1).sum()), 588)).astype(np.uint8)
    ids = rng.integers(20, 200, length)
    return RowInputs(
        ids,
        positions,
        modality,
        np.array([0, length], np.int32),
        patches,
        grid,
        media_positions.astype(np.int64),
    )


def join(prompts: Sequence[RowInputs]) -> RowInputs:
    """Several prompts as one row."""
    starts = np.cumsum([0, *(len(item.input_ids) for item in prompts)])
    return RowInputs(
        input_ids=np.concatenate([item.input_ids for item in prompts]),
        position_ids=np.concatenate([item.position_ids for item in prompts], axis=1),
        modality=np.concatenate([item.modality for item in prompts]),
        cu_seqlens=starts.astype(np.int32),
        patches=np.concatenate([item.patches for item in prompts]),
        grid_thw=np.concatenate([item.grid_thw for item in prompts]),
        media_positions=np.concatenate(
            [item.media_positions + start for item, start in zip(prompts, starts, strict=False)]
        ),
    )


def extended(item: RowInputs, tokens: Sequence[int]) -> RowInputs:
    """A prompt with text tokens after it."""
    first = item.position_ids.max() + 1
    length = len(item.input_ids) + len(tokens)
    return RowInputs(
        input_ids=np.concatenate([item.input_ids, np.array(tokens, np.int64)]),
        position_ids=np.concatenate(
            [item.position_ids, np.tile(np.arange(first, first + len(tokens)), (3, 1))], axis=1
        ),
        modality=np.concatenate([item.modality, np.zeros(len(tokens), np.int8)]),
        cu_seqlens=np.array([0, length], np.int32),
        patches=item.patches,
        grid_thw=item.grid_thw,
        media_positions=item.media_positions,
    )


def all_logits(model: ErnieModel, item: RowInputs) -> np.ndarray:
    """Logits [T, vocab] of a row without a cache, with which generation is compared."""
    with inference_mode(model):
        return model.logits(model(item).hidden).numpy()


def greedy_without_cache(
    model: ErnieModel, item: RowInputs, max_new_tokens: int, eos: Sequence[int]
) -> list[int]:
    """Greedy tokens by computing the whole row again for each of them."""
    tokens: list[int] = []
    while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in eos):
        tokens.append(int(all_logits(model, extended(item, tokens))[-1].argmax()))
    return tokens


def seed_values(model: ErnieModel, names_ending: str, seed: int) -> None:
    """Random values for the parameters whose names end so (adapters start as zeros)."""
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(names_ending):
            parameter.set_value(paddle.to_tensor(rng.normal(0, 0.1, parameter.shape).astype(np.float32)))
