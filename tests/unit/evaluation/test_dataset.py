from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.config import DataConfig
from erniekit.data.encode.stats import ErrorBudget
from erniekit.errors import ConfigError, DataError
from erniekit.evaluation.dataset import (
    EvalDataset,
    EvalFile,
    EvalSample,
    LossSample,
    find_files,
    load_samples,
    make_plan,
)
from erniekit.generation.load import find_model
from tests.unit.data.helpers import data_uri, noise
from tests.unit.generation.helpers import make_model, write_chats

TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("dataset") / "model", "dense")


@pytest.fixture(scope="module")
def vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("dataset_vl") / "model", "vl")


def write_records(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def chat(answer: Any, **more: Any) -> dict[str, Any]:
    reply = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
    return {"messages": [{"role": "user", "content": "Which digit?"}, reply], **more}


def test_chats_are_a_prompt_and_an_expected_answer(vl: Path, tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(noise(56, 84))}}
    question = [image, {"type": "text", "text": "Which digit?"}]
    history = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "The number is 7."},
    ]
    file = write_records(tmp_path / "chats.jsonl", {"messages": history}, {"messages": history[2:]})
    encoder = find_model(vl).encoder()
    first, second = load_samples([file], encoder)
    assert (first.sample_id, second.sample_id) == (f"{file}:1", f"{file}:2")
    assert first.expected == second.expected == "The number is 7."
    assert "two<|end_of_sentence|>" in first.prompt_text
    assert first.prompt_text.endswith("Picture 1:<image>Which digit?\nAssistant: <think>\n\n</think>\n\n")
    for sample in (first, second):
        assert len(sample.prompt.media) == 1
        assert sample.prompt.num_loss_tokens == 0
        assert sample.modality == "images" and sample.source == str(file)
        np.testing.assert_array_equal(sample.prompt.input_ids, sample.whole.input_ids[: len(sample.prompt)])
    assert len(load_samples([file, file], encoder, limit=3)) == 3


def test_a_plan_counts_samples_and_answers(vl: Path, tmp_path: Path) -> None:
    frames = [data_uri(noise(56, 56, seed)) for seed in range(2)]
    video = {"role": "user", "content": [{"type": "video", "video": frames}]}
    call = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}],
    }
    file = write_records(
        tmp_path / "a.jsonl",
        chat("7"),
        chat(call, tools=[TOOL]),
        {"text": "one two three"},
        {"messages": [video, {"role": "assistant", "content": "1,000"}]},
    )
    encoder = find_model(vl).encoder()
    samples = EvalDataset([EvalFile(file, "a")], encoder)
    found = list(samples)
    assert [type(sample) for sample in found] == [EvalSample, EvalSample, LossSample, EvalSample]
    assert [sample.modality for sample in found] == ["text", "text", "text", "videos"]
    assert isinstance(found[1], EvalSample) and found[1].tools == (TOOL,)
    assert found[1].expected == '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>\n'
    # Samples can be read again.
    plan = make_plan(samples, encoder.template, ["auto"])
    assert (plan.samples, plan.answers) == (4, 3)
    assert plan.metrics == (
        "exact_match",
        "numeric_match",
        "call_name",
        "call_arguments",
        "call_valid",
        "call_match",
    )
    assert {type(sample) for sample in EvalDataset([EvalFile(file, "a")], encoder, answers=False)} == {
        LossSample
    }
    assert [sample.sample_id[-1] for sample in load_samples([file], encoder)] == ["1", "2", "4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"messages": [{"role": "user", "content": "One?"}]}\n', r":1: the chat ends with a user message"),
        ('\n{"messages": [\n', r":2: not valid JSON"),
        ("", r"the data file has no samples"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    checkpoint: Path, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_samples([file], find_model(checkpoint).encoder())


def test_samples_that_cannot_be_used_are_skipped_and_counted_once(checkpoint: Path, tmp_path: Path) -> None:
    file = write_chats(tmp_path / "c.jsonl", [("One?", "two")] * 3)
    lines = file.read_text().splitlines()
    lines[1:1] = ["{", '{"messages": [{"role": "user", "content": "One?"}]}']
    file.write_text("\n".join(lines), encoding="utf-8")
    encoder, budget = find_model(checkpoint).encoder(), ErrorBudget("skip", 100)
    samples = EvalDataset([EvalFile(file, "c")], encoder, budget=budget, limit=2)
    assert [sample.sample_id for sample in samples] == [f"{file}:1", f"{file}:4"]
    assert make_plan(samples, encoder.template, ["auto"]).samples == 2
    assert budget.by_reason() == "invalid JSON: 1, no answer at the end: 1"
    only_bad = write_records(tmp_path / "bad.jsonl", {"messages": []})
    with pytest.raises(DataError, match="there are no samples that can be evaluated"):
        make_plan(EvalDataset([EvalFile(only_bad, "b")], encoder, budget=budget), encoder.template, ["auto"])


def test_files_are_those_named_else_those_of_the_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_records(tmp_path / f"{name}.jsonl", chat("7"))
    directory = str(tmp_path)
    run = DataConfig(
        train=["t.jsonl"],
        eval=[{"path": directory, "format": "messages"}, f"{directory}/a.jsonl"],
        format="sharegpt",
    )
    found = [(file.path.name, file.source, file.format) for file in find_files([], run)]
    first = [("a.jsonl", directory, "messages"), ("b.jsonl", directory, "messages")]
    assert found == [*first, ("a.jsonl", f"{directory}/a.jsonl", "sharegpt")]
    pattern = f"{directory}/*.jsonl"
    assert {(file.source, file.format) for file in find_files([pattern], run)} == {(pattern, "sharegpt")}
    assert [file.format for file in find_files([pattern], None)] == ["auto", "auto"]
    assert [file.format for file in find_files([pattern], None, "alpaca")] == ["alpaca", "alpaca"]
    with pytest.raises(ConfigError, match=r"data\.eval is empty"):
        find_files([], DataConfig(train=["t.jsonl"]))
    with pytest.raises(DataError, match="nowhere"):
        find_files([f"{directory}/nowhere.jsonl"], None)


def test_chats_are_drawn_from_all_files_and_always_the_same(checkpoint: Path, tmp_path: Path) -> None:
    encoder = find_model(checkpoint).encoder()
    text = {"text": "one two three"}
    files = [
        write_records(
            tmp_path / f"{name}.jsonl", text, *(chat(str(number)) for number in range(40)), {"x": 1}
        )
        for name in "ab"
    ]
    eval_data = EvalDataset([EvalFile(file, file.stem) for file in files], encoder)
    drawn = eval_data.draw_chats(20)
    ids = [(sample.source, int(sample.sample_id.rpartition(":")[2])) for sample in drawn]
    assert ids == sorted(set(ids)) and len(ids) == 20
    assert {source for source, _ in ids} == {"a", "b"} and any(number > 20 for _, number in ids)
    assert not {1, 42} & {number for _, number in ids}, "neither the text nor the bad record"
    assert [sample.sample_id for sample in eval_data.draw_chats(20)] == [sample.sample_id for sample in drawn]
    assert len(eval_data.draw_chats(99)) == 80


def test_drawn_chats_that_cannot_be_encoded_are_reported(checkpoint: Path, tmp_path: Path) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "gone.png"}}]}
    answer = {"role": "assistant", "content": "7"}
    file = write_records(
        tmp_path / "c.jsonl", chat("7"), {"messages": [image, answer]}, {"messages": [answer]}
    )
    encoder = find_model(checkpoint).encoder()
    budget = ErrorBudget("skip", 9)
    eval_data = EvalDataset([EvalFile(file, "c")], encoder, budget=budget)
    assert [sample.sample_id for sample in eval_data.draw_chats(9)] == [f"{file}:1"]
    assert [error.sample_id for error in budget.left_out()] == [f"{file}:2"]
