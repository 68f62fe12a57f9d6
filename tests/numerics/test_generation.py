"""Greedy continuations, compared with transformers' generate()."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.weights import load_model
from erniekit.generation.generate import Generated, Generator
from erniekit.generation.sampling import Sampling
from erniekit.models.row import RowInputs

torch = pytest.importorskip("torch")
hf = pytest.importorskip("tests.numerics.hf")

NEW_TOKENS = 12
SHARED = Path(__file__).resolve().parents[3] / "shared" / "reference_models"


INPUTS = {
    "dense": lambda: hf.text_inputs(9),
    "moe": lambda: hf.text_inputs(9),
    "vl image": lambda: hf.vision_inputs("image", (1, 4, 4)),
    "vl video": lambda: hf.vision_inputs("video", (6, 4, 8)),
}


@pytest.mark.parametrize("case", INPUTS)
def test_generate_agrees_with_transformers(case: str, tmp_path: Path) -> None:
    theirs = hf.make_model(case.partition(" ")[0])
    hf.save_hub(theirs, tmp_path / "model")
    inputs = INPUTS[case]()
    row = _row(inputs)
    expected = _generate(theirs, inputs)
    generator = Generator(load_model(tmp_path / "model"), ())
    assert generator.generate_rows([row], Sampling(NEW_TOKENS)) == [Generated(expected, "length")]
    until = expected[: expected.index(expected[4]) + 1]
    stopping = Generator(generator.model, (expected[4],))
    assert stopping.generate_rows([row], Sampling(NEW_TOKENS)) == [Generated(until, "stop")]
    penalised = Sampling(NEW_TOKENS, repetition_penalty=1.4)
    expected = _generate(theirs, inputs, repetition_penalty=1.4)
    assert generator.generate_rows([row], penalised) == [Generated(expected, "length")]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/reference_models beside this clone")
@pytest.mark.parametrize("stored", ["ref_vl", "ref_vl_video"])
def test_the_reference_models_go_on_after_images_and_videos(stored: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(SHARED / "vl_hf").eval()
    with np.load(SHARED / f"{stored}.npz") as file:
        inputs = {name.removeprefix("in_"): file[name] for name in file.files if name.startswith("in_")}
        positions = file["position_ids_thw"][:, 0]
    expected = _generate(theirs, inputs)
    row = replace(_row(inputs), position_ids=positions)
    for layout in ("vl_hf", "vl_hub"):
        generator = Generator(load_model(SHARED / layout), ())
        assert generator.generate_rows([row], Sampling(NEW_TOKENS)) == [Generated(expected, "length")]


def _generate(model: Any, inputs: dict[str, np.ndarray], repetition_penalty: float = 1.0) -> list[int]:
    tensors = {key: torch.tensor(value) for key, value in inputs.items()}
    # No token ends it: transformers' default would be id 2.
    options = dict(
        max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
    )
    with torch.no_grad():
        output = model.generate(**tensors, **options, repetition_penalty=repetition_penalty)
    new: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return new


def _row(inputs: dict[str, np.ndarray]) -> RowInputs:
    ids = inputs["input_ids"][0]
    positions = np.tile(np.arange(len(ids)), (3, 1))
    patches, grid = np.zeros((0, 588), np.float32), np.zeros((0, 3), np.int32)
    media = np.flatnonzero(inputs.get("mm_token_type_ids", np.zeros((1, len(ids))))[0])
    modality = np.zeros(len(ids), np.int8)
    if len(media):
        kind, suffix = ("image", "") if "pixel_values" in inputs else ("video", "_videos")
        patches, grid = inputs[f"pixel_values{suffix}"], inputs[f"{kind}_grid_thw"].astype(np.int32)
        modality = (inputs["moe_mm_token_type_ids"][0] > 0).astype(np.int8)
        sides = (max(int(grid[0, 0]) // 2, 1), int(grid[0, 1]) // 2, int(grid[0, 2]) // 2)
        first = media[0]
        positions[:, media] = first + np.indices(sides).reshape(3, -1)
        positions[:, media[-1] + 1 :] = first + max(sides) + np.arange(len(ids) - media[-1] - 1)
    return RowInputs(ids, positions, modality, np.array([0, len(ids)], np.int32), patches, grid, media)
