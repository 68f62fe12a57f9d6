from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from erniekit.checkpoint.weights import load_model
from erniekit.inference.generate import Decoding, Generator, inference_mode, split_rows
from erniekit.models.ernie import ErnieModel, RowInputs
from tests.unit.inference.helpers import (
    all_logits,
    extended,
    greedy_without_cache,
    join,
    make_model,
    prompt,
)

SHARED = Path(__file__).resolve().parents[4] / "shared" / "reference_models"
FAMILIES = ("dense", "moe", "vl")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ErnieModel:
    family = request.param
    return load_model(make_model(tmp_path_factory.mktemp(family) / "model", family))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> ErnieModel:
    return load_model(make_model(tmp_path_factory.mktemp("one") / "model", "dense"))


def _prompts(model: ErnieModel) -> list[RowInputs]:
    pictures = [None, (4, 6), (2, 4), None, (4, 4)] if model.config.vision is not None else [None] * 5
    lengths = (9, 17, 12, 1, 40)
    return [prompt(n, seed, p) for seed, (n, p) in enumerate(zip(lengths, pictures, strict=True))]


def test_cached_logits_are_those_of_the_whole_row(model: ErnieModel) -> None:
    prompts = _prompts(model)
    # More steps than a cache has room for at first; sequences are dropped on the way.
    tokens = np.random.default_rng(0).integers(20, 200, (len(prompts), 40))
    active = np.arange(len(prompts))
    with inference_mode(model):
        decoding = Decoding(model, [join(prompts[:3]), join(prompts[3:])])
        for step in range(tokens.shape[1]):
            logits = decoding.logits.numpy()
            if step % 13 == 0:
                for row, sequence in zip(logits, active, strict=True):
                    whole = all_logits(model, extended(prompts[sequence], tokens[sequence, :step].tolist()))
                    np.testing.assert_allclose(row, whole[-1], rtol=1e-5, atol=1e-5)
            if step in (5, 20):
                kept = np.array([0, 2, 3][: len(active) - 1])
                decoding.keep(kept)
                active = active[kept]
            decoding.step(tokens[active, step])
    assert len(active) < len(prompts)


def test_a_batch_gives_what_each_prompt_gives_alone_and_without_a_cache(model: ErnieModel) -> None:
    prompts = _prompts(model)
    # Two tokens that do come up end sequences at different steps.
    free = [greedy_without_cache(model, item, 8, ()) for item in prompts]
    eos = (free[0][2], free[1][5])
    expected = [greedy_without_cache(model, item, 8, eos) for item in prompts]
    generator = Generator(model, eos)
    assert generator.generate_rows([join(prompts)], 8) == expected
    assert generator.generate_rows([join(prompts[:2]), join(prompts[2:])], 8) == expected
    assert [generator.generate_rows([item], 8)[0] for item in prompts] == expected
    assert any(len(answer) < 8 for answer in expected)
    assert all(len(answer) == 8 or answer[-1] in eos for answer in expected)


def test_progress_counts_finished_sequences_and_the_model_is_left_as_it_was(dense: ErnieModel) -> None:
    prompts = _prompts(dense)
    eos = (greedy_without_cache(dense, prompts[0], 3, ())[2],)
    seen: list[int] = []
    dense.train()
    answers = Generator(dense, eos).generate_rows([join(prompts)], 6, seen.append)
    assert dense.training
    dense.eval()
    assert len(answers[0]) == 3
    assert seen == sorted(seen) and seen[-1] == len(prompts) and len(seen) > 1


def test_one_new_token_and_no_prompt(dense: ErnieModel) -> None:
    item = prompt(5, 0)
    generator = Generator(dense, ())
    assert generator.generate_rows([item], 1) == [[int(all_logits(dense, item)[-1].argmax())]]
    assert generator.generate([], 4) == []


def test_rows_and_batches_stay_within_their_bounds(dense: ErnieModel) -> None:
    lengths = [5, 40, 7, 3, 30, 12, 12]
    generator = Generator(dense, (), batch_size=3, batch_tokens=100)
    batches = generator._batches(lengths, 10)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= 3
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + 10) <= 100
    assert split_rows(range(7), lengths, 20) == [[0], [1], [2, 3], [4], [5], [6]]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/reference_models beside this clone")
@pytest.mark.parametrize("name", ["dense", "moe", "vl_hub", "vl_hf"])
def test_greedy_continuations_of_the_reference_models(name: str) -> None:
    report = json.loads((SHARED / "report.json").read_text())[name.partition("_")[0]]
    ids = np.array(report["prompt_ids"])
    length = len(ids)
    positions, modality = np.tile(np.arange(length), (3, 1)), np.zeros(length, np.int8)
    patches, grid = np.zeros((0, 588), np.float32), np.zeros((0, 3), np.int32)
    if name.startswith("vl"):
        stored = np.load(SHARED / "ref_vl.npz")
        # The prompt is the beginning of the stored row.
        assert (stored["in_input_ids"][0, :length] == ids).all()
        positions = stored["position_ids_thw"][:, 0, :length]
        modality = stored["in_moe_mm_token_type_ids"][0, :length].astype(np.int8)
        patches, grid = stored["in_pixel_values"], stored["in_image_grid_thw"].astype(np.int32)
    media = np.flatnonzero(ids == 9) if name.startswith("vl") else np.zeros(0, np.int64)
    row = RowInputs(ids, positions, modality, np.array([0, length], np.int32), patches, grid, media)
    generator = Generator(load_model(SHARED / name), ())
    assert generator.generate_rows([row], len(report["greedy"])) == [report["greedy"]]
