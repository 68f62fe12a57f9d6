from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import pytest

from erniekit.checkpoint.weights import load_model
from erniekit.data.chat.conversation import Conversation, ImagePart, Message, Part, SampleError, TextPart
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import make_encoder
from erniekit.data.media.item import MediaSpec
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.generate import Decoding, Generated, Generator, inference_mode, split_rows
from erniekit.generation.sampling import Sampling
from erniekit.models.ernie import ErnieModel
from erniekit.models.row import RowInputs
from tests.closeness import MODEL, assert_close
from tests.unit.data.helpers import encoded, noise
from tests.unit.generation.helpers import (
    all_logits,
    extended,
    greedy_without_cache,
    join,
    make_model,
    prompt,
)

pytestmark = pytest.mark.slow

SHARED = Path(__file__).resolve().parents[4] / "shared" / "reference_models"
FAMILIES = ("dense", "moe", "vl")


@dataclass(frozen=True)
class Chats:
    """A VL model and prompts for it."""

    directory: Path
    model: ErnieModel
    prompts: list[Document]
    spec: MediaSpec | None
    text: Detokenizer

    def generator(self, *eos: int, batch_size: int = 128, row_tokens: int = 4096) -> Generator:
        bounds = {"batch_size": batch_size, "row_tokens": row_tokens}
        return Generator(self.model, eos, self.spec, detokenizer=self.text, **bounds)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ErnieModel:
    family = request.param
    return load_model(make_model(tmp_path_factory.mktemp(family) / "model", family))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> ErnieModel:
    return load_model(make_model(tmp_path_factory.mktemp("one") / "model", "dense"))


def _ids(answers: list[Generated]) -> list[list[int]]:
    return [answer.ids for answer in answers]


def _pieces(text: Detokenizer, ids: list[int]) -> list[str]:
    """What each token tells, and what is left at the end."""
    stream = text.stream()
    return [*(stream.feed(id) for id in ids), stream.finish()]


def _prompts(model: ErnieModel) -> list[RowInputs]:
    images = [None, (4, 6), (2, 4), None, (4, 4)] if model.config.vision is not None else [None] * 5
    lengths = (9, 17, 12, 1, 40)
    return [prompt(n, seed, p) for seed, (n, p) in enumerate(zip(lengths, images, strict=True))]


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
                    assert_close(row, whole[-1], MODEL)
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
    assert _ids(generator.generate_rows([join(prompts)], Sampling(8))) == expected
    assert _ids(generator.generate_rows([join(prompts[:2]), join(prompts[2:])], Sampling(8))) == expected
    assert [generator.generate_rows([item], Sampling(8))[0].ids for item in prompts] == expected
    assert any(len(answer) < 8 for answer in expected)
    assert all(len(answer) == 8 or answer[-1] in eos for answer in expected)


def test_progress_is_reported_with_each_token_and_the_model_is_left_as_it_was(dense: ErnieModel) -> None:
    prompts = _prompts(dense)
    eos = (greedy_without_cache(dense, prompts[0], 3, ())[2],)
    seen: list[int] = []
    dense.train()
    answers = Generator(dense, eos).generate_rows([join(prompts)], Sampling(6), seen.append)
    assert dense.training
    dense.eval()
    assert (len(answers[0].ids), answers[0].finish) == (3, "stop")
    assert seen == sorted(seen) and seen[-1] == len(prompts) and 0 < seen[2] < len(prompts)
    assert len(seen) == 6 + (seen[-2] < len(prompts))


def test_processes_in_step_go_on_with_the_tokens_of_one(model: ErnieModel, dense: ErnieModel) -> None:
    """Of two models that would say other things, the second follows the first to the end of every answer."""
    prompts = _prompts(dense)
    eos = (greedy_without_cache(dense, prompts[0], 3, ())[2],)
    said: list[np.ndarray] = []

    def lead(tokens: np.ndarray) -> np.ndarray:
        said.append(tokens)
        return tokens

    expected = Generator(dense, eos, agree=lead).generate_rows([join(prompts)], Sampling(6))
    steps = iter(said)
    follower = Generator(model, eos, agree=lambda tokens: next(steps))
    assert follower.generate_rows([join(prompts)], Sampling(6)) == expected
    assert {answer.finish for answer in expected} == {"stop", "length"}
    assert next(steps, None) is None


def test_one_new_token_and_no_prompt(dense: ErnieModel) -> None:
    item = prompt(5, 0)
    generator = Generator(dense, ())
    assert _ids(generator.generate_rows([item], Sampling(1))) == [[int(all_logits(dense, item)[-1].argmax())]]
    assert generator.generate([], Sampling(4)) == []


def test_randomness_comes_from_the_place_that_is_said(chats: Chats) -> None:
    generator = chats.generator()
    sampling = Sampling(5, temperature=1.0, seed=3)
    whole = generator.generate(chats.prompts, sampling)
    half = generator.generate(chats.prompts[1::2], sampling, indices=range(1, len(chats.prompts), 2))
    assert half == whole[1::2] != generator.generate(chats.prompts[1::2], sampling)


def test_rows_and_batches_stay_within_their_bounds(dense: ErnieModel) -> None:
    lengths = [5, 40, 7, 3, 30, 12, 12]
    generator = Generator(dense, (), batch_size=3, batch_tokens=100)
    batches = generator._batches(lengths, 10)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= 3
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + 10) <= 100
    assert split_rows(range(7), lengths, 20) == [[0], [1], [2, 3], [4], [5], [6]]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Chats:
    """Questions with and without images, of different lengths."""
    directory = make_model(tmp_path_factory.mktemp("chats") / "model", "vl")
    encoder = make_encoder(directory)
    prompts = []
    for seed in range(6):
        parts: list[Part] = [TextPart("Which digit is this? " * (seed % 3 + 1))]
        if seed % 2:
            parts.insert(0, ImagePart(encoded(noise(28 * (seed % 3 + 1), 56, seed))))
        question = Message("user", tuple(parts), False)
        prompts.append(encoder.encode_prompt(Conversation((question,), f"chat {seed}")))
    text = Detokenizer.from_checkpoint(directory)
    return Chats(directory, load_model(directory), prompts, encoder.media_spec, text)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(7, temperature=1.0, seed=3),
        Sampling(7, temperature=0.8, top_p=0.9, top_k=40, repetition_penalty=1.3),
        Sampling(7, repetition_penalty=1.5),
    ],
)
def test_what_a_prompt_gets_does_not_depend_on_the_batch(chats: Chats, sampling: Sampling) -> None:
    together = chats.generator().generate(chats.prompts, sampling)
    assert chats.generator(batch_size=1).generate(chats.prompts, sampling) == together
    assert chats.generator(batch_size=4, row_tokens=40).generate(chats.prompts, sampling) == together
    # An end of some, on the way, changes nothing for the others.
    eos = together[1].ids[3]
    for whole, cut in zip(together, chats.generator(eos).generate(chats.prompts, sampling), strict=True):
        ended = eos in whole.ids
        expected = whole.ids[: whole.ids.index(eos) + 1] if ended else whole.ids
        assert cut == Generated(expected, "stop" if ended else "length")
    greedy = chats.generator().generate(chats.prompts, Sampling(7))
    assert together != greedy


def test_seeds_and_places_give_different_answers(chats: Chats) -> None:
    generator = chats.generator()
    first, second, same = (
        generator.generate([chats.prompts[0]] * 3, Sampling(6, temperature=1.5, seed=seed))
        for seed in (0, 1, 0)
    )
    assert first == same != second
    assert len({tuple(answer.ids) for answer in first}) == 3


@pytest.mark.parametrize("sampling", [Sampling(6), Sampling(6, temperature=1.0, seed=2)])
def test_a_stream_gives_the_same_tokens_one_by_one(chats: Chats, sampling: Sampling) -> None:
    for question in chats.prompts[:2]:
        (whole,) = chats.generator().generate([question], sampling)
        assert list(chats.generator().stream(question, sampling)) == whole.ids
        eos = whole.ids[2]
        until = whole.ids[: whole.ids.index(eos) + 1]
        assert list(chats.generator(eos).stream(question, sampling)) == until


def test_between_the_tokens_of_a_stream_everything_is_as_it_was(chats: Chats) -> None:
    chats.model.train()
    stream = chats.generator().stream(chats.prompts[1], Sampling(6))
    next(stream)
    assert paddle.is_grad_enabled() and chats.model.training
    next(stream)
    stream.close()
    assert paddle.is_grad_enabled() and chats.model.training
    chats.model.eval()


def test_a_stream_says_at_once_that_an_image_is_gone(chats: Chats, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(encoded(noise(56, 56)))
    question = Message("user", (ImagePart(str(file)), TextPart("Which digit?")), False)
    encoder = make_encoder(chats.directory)
    prompt = encoder.encode_prompt(Conversation((question,), "chat"))
    file.unlink()
    with pytest.raises(SampleError, match=r"image\.png"):
        chats.generator().stream(prompt, Sampling(6))


def test_a_stop_text_ends_the_answer_where_it_is_complete(chats: Chats) -> None:
    free = chats.generator().generate(chats.prompts, Sampling(12))
    pieces = [_pieces(chats.text, answer.ids) for answer in free]
    # Of the first answer, what stands on both sides of a border of two tokens.
    pair = next(n for n in range(3, 12) if pieces[0][n - 1] and pieces[0][n])
    stop = pieces[0][pair - 1][-1] + pieces[0][pair][0]
    sampling = Sampling(12, stop=(stop, "never said"))
    stopped = chats.generator().generate(chats.prompts, sampling)
    for whole, cut, parts in zip(free, stopped, pieces, strict=True):
        before, found, _ = "".join(parts).partition(stop)
        assert cut.finish == ("stop" if found else "length")
        assert cut.ids == whole.ids[: len(cut.ids)]
        assert chats.text.decode(cut.ids, sampling.stop) == before
        assert stop not in "".join(_pieces(chats.text, cut.ids[:-1]))
    assert len(stopped[0].ids) < 12
    assert list(chats.generator().stream(chats.prompts[0], sampling)) == stopped[0].ids
    with pytest.raises(ValueError, match="stop texts need"):
        Generator(chats.model, (), chats.spec).generate(chats.prompts, sampling)


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
    assert _ids(generator.generate_rows([row], Sampling(len(report["greedy"])))) == [report["greedy"]]
