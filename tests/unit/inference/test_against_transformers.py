"""Greedy continuations, held to transformers' generate()."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.weights import load_model
from erniekit.inference.generate import Generator
from erniekit.models.ernie import RowInputs

torch = pytest.importorskip("torch")
hf = pytest.importorskip("tests.numerics.hf")

NEW_TOKENS = 12


@pytest.mark.parametrize("family", ["dense", "moe", "vl"])
def test_generate_agrees_with_transformers(family: str, tmp_path: Path) -> None:
    theirs = hf.make_model(family)
    hf.save_hub(theirs, tmp_path / "model")
    inputs = hf.vision_inputs("image", (1, 4, 4)) if family == "vl" else hf.text_inputs(9)
    expected = _generate(theirs, inputs)
    generator = Generator(load_model(tmp_path / "model"), ())
    assert generator.generate_rows([_row(inputs)], NEW_TOKENS) == [expected]
    stopping = Generator(generator.model, (expected[4],))
    assert stopping.generate_rows([_row(inputs)], NEW_TOKENS) == [expected[: expected.index(expected[4]) + 1]]


def _generate(model: Any, inputs: dict[str, np.ndarray]) -> list[int]:
    tensors = {key: torch.tensor(value) for key, value in inputs.items()}
    # No token ends it: transformers' default would be id 2.
    options = dict(
        max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
    )
    with torch.no_grad():
        output = model.generate(**tensors, **options)
    new: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return new


def _row(inputs: dict[str, np.ndarray]) -> RowInputs:
    ids = inputs["input_ids"][0]
    positions = np.tile(np.arange(len(ids)), (3, 1))
    patches, grid = np.zeros((0, 588), np.float32), np.zeros((0, 3), np.int32)
    media = np.zeros(0, np.int64)
    modality = np.zeros(len(ids), np.int8)
    if "pixel_values" in inputs:
        patches, grid = inputs["pixel_values"], inputs["image_grid_thw"].astype(np.int32)
        media = np.flatnonzero(ids == hf.IMAGE)
        modality = inputs["moe_mm_token_type_ids"][0].astype(np.int8)
        side = int(grid[0, 1]) // 2
        first = media[0]
        positions[0, media] = first
        positions[1, media] = first + np.repeat(np.arange(side), side)
        positions[2, media] = first + np.tile(np.arange(side), side)
        positions[:, media[-1] + 1 :] = first + side + np.arange(len(ids) - media[-1] - 1)
    return RowInputs(ids, positions, modality, np.array([0, len(ids)], np.int32), patches, grid, media)
