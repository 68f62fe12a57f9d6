from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.weights import load_model
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.load.loader import load_row
from erniekit.errors import DataError
from erniekit.evaluation import evaluate as module
from erniekit.evaluation.dataset import EvalDataset, EvalFile, EvalSample, LossSample, load_samples, make_plan
from erniekit.evaluation.evaluate import Evaluation, Prediction, evaluate, evaluate_generation
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.generate import Generated, Generator
from erniekit.generation.load import find_model
from erniekit.generation.sampling import Sampling
from erniekit.models.ernie import ErnieModel
from erniekit.objectives.device_batch import row_inputs
from tests.closeness import MODEL, assert_close
from tests.unit.data.helpers import data_uri, encoded, noise
from tests.unit.generation.helpers import all_logits, make_model, write_chats


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("evaluate") / "model", "dense")


@pytest.fixture(scope="module")
def vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("evaluate_vl") / "model", "vl")


def parts(checkpoint: Path, template: str = "auto") -> tuple[ErnieModel, Encoder, Detokenizer]:
    source = find_model(checkpoint)
    return source.load(), source.encoder(template), Detokenizer.from_checkpoint(checkpoint)


def script(monkeypatch: pytest.MonkeyPatch, text: Detokenizer, answers: Sequence[tuple[str, bool]]) -> None:
    """Makes any model give these answers, one after the other; the flag says whether it ends them."""
    left = iter(answers)

    def generate(self: Generator, documents: Sequence[Document], *rest: object) -> list[Generated]:
        found = []
        for answer, ended in [next(left) for _ in documents]:
            ids = text._backend.encode(answer, add_special_tokens=False).ids
            found.append(Generated(ids + [2] * ended, "stop" if ended else "length"))
        return found

    monkeypatch.setattr(Generator, "generate", generate)


def run(
    checkpoint: Path,
    samples: Sequence[LossSample],
    template: str = "auto",
    metrics: Sequence[str] = ("auto",),
) -> tuple[Evaluation, list[Prediction]]:
    model, encoder, text = parts(checkpoint, template)
    seen: list[Prediction] = []
    plan = make_plan(samples, encoder.template, metrics)
    result = evaluate(
        model, encoder, text, samples, plan, on_prediction=lambda sample, prediction: seen.append(prediction)
    )
    return result, seen


def test_generation_from_documents_keeps_their_order(vl: Path, tmp_path: Path) -> None:
    chats = []
    for seed in range(7):
        image = {"type": "image_url", "image_url": {"url": data_uri(noise(28 * (seed % 3 + 1), 56, seed))}}
        text = {"type": "text", "text": "Which digit is this? " * (seed % 4)}
        chats.append(([image, text] if seed != 5 else "Which digit?", "7"))
    source = find_model(vl)
    encoder, model = source.encoder(), source.load()
    prompts = [s.prompt for s in load_samples([write_chats(tmp_path / "chats.jsonl", chats)], encoder)]
    alone = Generator(model, (), encoder.media_spec)
    expected = [
        alone.generate_rows([row_inputs(load_row([p], encoder.media_spec))], Sampling(5))[0] for p in prompts
    ]
    seen: list[int] = []
    bounded = Generator(model, (), encoder.media_spec, row_tokens=40, batch_size=3)
    assert bounded.generate(prompts, Sampling(5), seen.append) == expected
    assert seen[-1] == 7
    assert len({tuple(answer.ids) for answer in expected}) > 1


@pytest.mark.parametrize(
    ("generated", "ended", "match"),
    [
        ("The number is 7.", True, True),
        ("The number is 7.", False, False),
        ("The number is 7. ", True, False),
        ("\nThe number is 7.", True, False),
        ("The number is 7", True, False),
        ("", True, False),
    ],
)
def test_an_answer_matches_to_the_character_and_must_end(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    generated: str,
    ended: bool,
    match: bool,
) -> None:
    assert _answer(checkpoint, tmp_path, monkeypatch, generated, ended, "auto") == (generated, match)


@pytest.mark.parametrize(
    ("generated", "answer", "reasoning", "match"),
    [
        ("It is odd.\n</think>\n\nThe number is 7.", "The number is 7.", "It is odd.", True),
        ("\n</think>\n\nThe number is 7.", "The number is 7.", "", True),
        ("The number is 7.", "", "The number is 7.", False),
    ],
)
def test_reasoning_is_not_compared(
    vl: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    generated: str,
    answer: str,
    reasoning: str,
    match: bool,
) -> None:
    found = _answer(vl, tmp_path, monkeypatch, generated, True, "ernie_vl_thinking", reasoning)
    assert found == (answer, match)


def _answer(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    generated: str,
    ended: bool,
    template: str,
    reasoning: str = "",
) -> tuple[str, bool]:
    """Answer and match of one chat to which the model answers `generated`."""
    _, encoder, text = parts(checkpoint, template)
    script(monkeypatch, text, [(generated, ended)])
    file = write_chats(tmp_path / "c.jsonl", [("Which digit?", "The number is 7.")])
    result, (prediction,) = run(checkpoint, load_samples([file], encoder), template, ["token_f1"])
    assert result.scores.overall.answers == 1 and result.scores.overall.ended == ended
    assert result.scores.overall.metrics["exact_match"].total == prediction.match
    assert prediction.expected == prediction.reference.text == "The number is 7."
    assert prediction.parsed.reasoning == reasoning
    assert prediction.scores["exact_match"] == prediction.match and "token_f1" in prediction.scores
    return prediction.answer, prediction.match


def test_calls_of_a_thinking_model_are_parsed_and_scored(
    vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"type": "object", "properties": {"digit": {"type": "integer"}}, "required": ["digit"]}
    tools = [{"type": "function", "function": {"name": "report", "parameters": schema}}]
    call = {"type": "function", "function": {"name": "report", "arguments": '{"digit": 7}'}}
    chats = [
        {"tools": tools, "messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", **reply}]}
        for reply in ({"tool_calls": [call]}, {"content": "two"})
    ]
    file = tmp_path / "c.jsonl"
    file.write_text("".join(json.dumps(chat) + "\n" for chat in [chats[0]] * 4 + [chats[1]] * 2))
    _, encoder, text = parts(vl, "ernie_vl_thinking")

    def calling(arguments: str) -> str:
        return (
            f'It is\n</think>\n\n<tool_call>\n{{"name": "report", "arguments": {arguments}}}\n</tool_call>\n'
        )

    script(
        monkeypatch,
        text,
        [
            (calling('{ "digit": 7.0}'), True),
            (calling('{"digit": "7"}'), True),
            (calling('{"digit": '), True),
            ("It is\n</think>\n\n7", True),
            ("</think>two", True),
            (calling('{"digit": 7}'), True),
        ],
    )
    result, seen = run(vl, load_samples([file], encoder), "ernie_vl_thinking")
    values = {name: (mean.total, mean.samples) for name, mean in result.scores.overall.metrics.items()}
    assert values == {
        "exact_match": (1, 6),
        "call_name": (2, 4),
        "call_arguments": (1, 4),
        "call_valid": (1, 4),
        "call_match": (1, 4),
        "call_none": (1, 2),
    }
    assert [prediction.verdict == "right" for prediction in seen] == [True, False, False, False, True, False]
    assert seen[2].parsed.tool_calls[0].error is not None
    assert result.wrong == 4 and [p.id for p in result.mistakes] == [f"{file}:{line}" for line in (2, 3, 4)]
    assert result.scalars()["eval/call_match"] == 0.25


def test_loss_is_the_mean_over_all_trained_tokens_by_source_and_modality(vl: Path, tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(noise(56, 84))}}
    chats = [("One?", "two"), ([image], "The number is 7."), ("Which digit is this?", "The number is 7.")]
    first = write_chats(tmp_path / "first.jsonl", chats)
    second = tmp_path / "second.jsonl"
    second.write_text(json.dumps({"text": "One two three four five six."}) + "\n")
    model, (_, encoder, text) = load_model(vl), parts(vl)
    samples = EvalDataset([EvalFile(first, "first"), EvalFile(second, "second")], encoder)
    plan = make_plan(samples, encoder.template, ["auto"])
    phases: list[tuple[str, int, int]] = []
    model.train()
    result = evaluate(
        model, encoder, text, samples, plan, Sampling(3), on_progress=lambda *state: phases.append(state)
    )
    assert model.training
    sums = {sample.sample_id: _loss(model, encoder, sample) for sample in samples}
    keys = list(sums)
    scores = result.scores
    for group, wanted in (
        (scores.overall, keys),
        (scores.sources["first"], keys[:3]),
        (scores.sources["second"], keys[3:]),
        (scores.modalities["text"], [keys[0], keys[2], keys[3]]),
        (scores.modalities["images"], keys[1:2]),
    ):
        total, tokens = (sum(values) for values in zip(*(sums[key] for key in wanted), strict=True))
        assert (group.samples, group.loss_tokens) == (len(wanted), tokens)
        assert_close(group.loss, total / tokens)
        assert_close(group.perplexity, math.exp(total / tokens), MODEL)  # the exponential is steep
    assert list(scores.sources) == ["first", "second"] and len(scores.modalities) == 2
    assert phases[0] == ("loss", 0, 4) and ("loss", 4, 4) in phases and phases[-1] == ("answers", 3, 3)
    assert result.scalars("x")["x/loss"] == scores.overall.loss


def _loss(model: ErnieModel, encoder: Encoder, sample: LossSample) -> tuple[float, int]:
    logits = all_logits(model, row_inputs(load_row([sample.whole], encoder.media_spec))).astype(np.float64)
    total, tokens = 0.0, 0
    for row, label in zip(logits, sample.whole.labels, strict=True):
        if label != -100:
            total += math.log(np.exp(row - row.max()).sum()) + row.max() - row[label]
            tokens += 1
    return total, tokens


def test_small_chunks_give_the_same(vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [{"type": "image_url", "image_url": {"url": data_uri(noise(56, 56, seed))}} for seed in range(3)]
    chats: list[tuple[Any, str]] = [([images[n // 2]], "two") if n % 2 else ("One?", "two") for n in range(6)]
    model, encoder, text = parts(vl)
    samples = load_samples([write_chats(tmp_path / "c.jsonl", chats)], encoder)
    plan = make_plan(samples, encoder.template, ["auto"])

    def answers(**settings: int) -> tuple[list[tuple[str, str]], float | None]:
        seen: list[tuple[str, str]] = []
        result = evaluate(
            model,
            encoder,
            text,
            samples,
            plan,
            Sampling(4),
            on_prediction=lambda sample, prediction: seen.append((sample.sample_id, prediction.answer)),
            **settings,
        )
        return seen, result.scores.overall.loss

    whole, loss = answers()
    assert [name for name, _ in whole] == [sample.sample_id for sample in samples]
    monkeypatch.setattr(module, "_CHUNK_BATCHES", 1)
    sizes: list[int] = []
    generate = Generator.generate

    def counted(self: Generator, documents: Sequence[Document], *rest: Any) -> list[Generated]:
        sizes.append(len(documents))
        return generate(self, documents, *rest)

    monkeypatch.setattr(Generator, "generate", counted)
    again, same_loss = answers(batch_size=4)
    assert again == whole
    assert_close(same_loss, loss)
    # A chunk also ends when its inline images have many bytes.
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    assert answers()[0] == whole
    assert sizes == [4, 2, 2, 2, 2]


def test_an_image_that_cannot_be_read_is_raised_or_skipped(vl: Path, tmp_path: Path) -> None:
    data = encoded(noise(200, 200))
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "good.png").write_bytes(data)
    chats = [([{"type": "image", "image": f"{name}.png"}], "two") for name in ("good", "cut", "good")]
    file = write_chats(tmp_path / "c.jsonl", chats)
    model, encoder, text = parts(vl)
    samples = load_samples([file], encoder)
    plan = make_plan(samples, encoder.template, ["auto"])
    with pytest.raises(SampleError, match=r"c\.jsonl:2: damaged image"):
        evaluate(model, encoder, text, samples, plan, Sampling(2))
    budget, seen = ErrorBudget("skip", 9), []
    phases: list[tuple[str, int, int]] = []
    result = evaluate(
        model,
        encoder,
        text,
        samples,
        plan,
        Sampling(2),
        budget=budget,
        on_prediction=lambda sample, prediction: seen.append(prediction.id),
        on_progress=lambda *state: phases.append(state),
    )
    assert seen == [f"{file}:1", f"{file}:3"]
    assert result.scores.overall.samples == result.scores.overall.answers == 2
    assert budget.by_reason() == "bad image: 1"
    assert ("loss", 3, 3) in phases and phases[-1] == ("answers", 2, 2)


def test_generation_alone_for_use_in_training(checkpoint: Path, tmp_path: Path) -> None:
    model, encoder, text = parts(checkpoint)
    model.train()
    samples = load_samples([write_chats(tmp_path / "c.jsonl", [("One?", "12"), ("Two?", "7 km")])], encoder)
    plan = make_plan(samples, encoder.template, ["auto", "anls"])
    generator = Generator(model, text.eos_token_ids, encoder.media_spec)
    result = evaluate_generation(generator, encoder, text, samples, plan, Sampling(2))
    assert model.training
    scalars = result.scalars()
    assert list(scalars) == ["eval/exact_match", "eval/anls", "eval/numeric_match"]
    assert all(0 <= value <= 1 for value in scalars.values())
    assert result.scores.overall.loss is None and result.scores.overall.answers == 2
    assert isinstance(samples[0], EvalSample)
    with pytest.raises(DataError, match="no samples"):
        make_plan([], encoder.template, ["auto"])


def test_a_stop_text_ends_an_answer_and_is_not_in_it(checkpoint: Path, tmp_path: Path) -> None:
    model, encoder, text = parts(checkpoint)
    chats = [(question, "two") for question in ("One?", "Two?", "Which digit?", "Six.", "Give the number")]
    samples = load_samples([write_chats(tmp_path / "c.jsonl", chats)], encoder)
    plan = make_plan(samples, encoder.template, ["auto"])
    seen: list[Prediction] = []

    def take(sample: EvalSample, prediction: Prediction) -> None:
        seen.append(prediction)

    evaluate(model, encoder, text, samples, plan, Sampling(24), on_prediction=take)
    # The answers of a model with random weights do not matter, but bytes that are not text come at the end only.
    first = next(place for place, found in enumerate(seen) if re.search("[a-z]{2}", found.answer))
    (stop,) = re.findall("[a-z]{2}", seen[first].answer)[-1:]
    evaluate(model, encoder, text, samples, plan, Sampling(24, stop=(stop,)), on_prediction=take)
    stopped = seen[len(samples) + first]
    assert stopped.answer == seen[first].answer[: seen[first].answer.index(stop)]
    assert stopped.ended


def test_control_tokens_are_not_in_answers(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoder, text = parts(checkpoint)
    wrote = ["<s>t<unk>wo<mask:1>", "two<|end_of_sentence|>", "two<|end_of_sentence|>User: More?"]
    script(monkeypatch, text, [(answer, True) for answer in wrote])
    samples = load_samples([write_chats(tmp_path / "c.jsonl", [("One?", "two")] * 3)], encoder)
    seen: list[Prediction] = []
    plan = make_plan(samples, encoder.template, ["auto"])
    evaluate(
        model, encoder, text, samples, plan, Sampling(12), on_prediction=lambda _, found: seen.append(found)
    )
    assert [(found.answer, found.parsed.text, found.match) for found in seen] == [("two", "two", True)] * 3
