"""Keys of other trainers: honoured, refused by name, or reported; never passed over in silence."""

from __future__ import annotations

from typing import Any

import pytest

from erniekit.data.chat.conversation import ReasoningPart, SampleError, TextPart
from erniekit.data.formats.fields.keys import HARMLESS, LOSS_SWITCHES, REASONING, REFUSED
from tests.unit.data.formats.parsing import parse

QUESTION = {"role": "user", "content": "q"}


def answered(**keys: Any) -> dict[str, Any]:
    return {"messages": [QUESTION, {"role": "assistant", "content": "a", **keys}]}


def shared(**keys: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **keys}]}


def text_info(**keys: Any) -> dict[str, Any]:
    return {"text_info": [{"text": "q", "tag": "mask"}, {"text": "a", "tag": "no_mask", **keys}]}


def parts(**keys: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "bad", **keys}, {"type": "text", "text": "good"}]
    return {"messages": [QUESTION, {"role": "assistant", "content": content}]}


# One record of every format, to which a key is added.
RECORDS: dict[str, dict[str, Any]] = {
    "messages": answered(),
    "sharegpt": shared(),
    "alpaca": {"instruction": "q", "output": "a"},
    "query_response": {"query": "q", "response": "a"},
    "erniekit vl": text_info(),
    "erniekit text": {"src": ["q"], "tgt": ["a"]},
    "erniekit pair": {"src": ["q"], "response": ["a", "b"], "sort": [1, 0]},
    "erniekit pretraining": {"tgt": ["t"]},
    "text": {"text": "t"},
}


@pytest.mark.parametrize("key", LOSS_SWITCHES)
@pytest.mark.parametrize("build", [answered, shared, text_info])
def test_loss_switches_of_messages_are_honoured(build: Any, key: str) -> None:
    for value, trained in [(False, False), (0, False), (0.0, False), (True, True), (1, True), (None, True)]:
        assert parse(build(**{key: value})).messages[-1].trained is trained
    for value in (0.5, 2, "false", [0]):
        with pytest.raises(SampleError, match=f'"{key}" must be true or false'):
            parse(build(**{key: value}))


@pytest.mark.parametrize("key", LOSS_SWITCHES)
def test_loss_switches_of_parts_are_honoured(key: str) -> None:
    for value in (False, 0):
        assert parse(parts(**{key: value})).messages[1].parts == (TextPart("bad", False), TextPart("good"))
    assert parse(parts(**{key: 1})).messages[1].parts == (TextPart("bad"), TextPart("good"))
    with pytest.raises(SampleError, match=f'message 2, part 1: "{key}" must be true or false'):
        parse(parts(**{key: 0.5}))


def test_a_message_of_untrained_parts_is_not_trained() -> None:
    content = [{"type": "text", "text": "a", "train": False}, {"type": "reasoning", "text": "r", "weight": 0}]
    assert not parse({"messages": [QUESTION, {"role": "assistant", "content": content}]}).messages[1].trained


def test_loss_switches_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SampleError, match="message 2: its loss switches contradict each other"):
        parse(answered(train=False, weight=1))
    assert not parse(answered(train=False, weight=0)).messages[1].trained


@pytest.mark.parametrize("key", LOSS_SWITCHES)
def test_only_answers_carry_loss(key: str) -> None:
    asked = {"role": "user", "content": "q", key: 0}
    assert not parse({"messages": [asked, {"role": "assistant", "content": "a"}]}).messages[0].trained
    with pytest.raises(SampleError, match="only the assistant's messages carry loss"):
        parse({"messages": [{**asked, key: 1}, {"role": "assistant", "content": "a"}]})
    content = [{"type": "text", "text": "q", key: True}]
    with pytest.raises(SampleError, match="only the assistant's parts carry loss"):
        parse({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]})


@pytest.mark.parametrize("key", REASONING)
def test_reasoning_beside_an_answer_is_its_reasoning(key: str) -> None:
    thought = {key: "hm"}
    records = [answered(**thought), shared(**thought), text_info(**thought)]
    records += [RECORDS["alpaca"] | thought, RECORDS["query_response"] | thought]
    for record in records:
        assert parse(record).messages[-1].parts == (ReasoningPart("hm"), TextPart("a"))
        assert not parse(record).notices
    with pytest.raises(SampleError, match=f'"{key}" must be a string'):
        parse(answered(**{key: ["hm"]}))
    with pytest.raises(SampleError, match="only an assistant message has reasoning"):
        parse({"messages": [{**QUESTION, key: "hm"}, {"role": "assistant", "content": "a"}]})


def test_reasoning_as_a_part() -> None:
    for part in (
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "reasoning", "text": "hm"},
        {"type": "reasoning", "reasoning": "hm"},
    ):
        message = {"role": "assistant", "content": [part, {"type": "text", "text": "a"}]}
        assert parse({"messages": [QUESTION, message]}).messages[1].parts == (
            ReasoningPart("hm"),
            TextPart("a"),
        )
    with pytest.raises(SampleError, match='part 1: "thinking" must be a string'):
        parse({"messages": [QUESTION, {"role": "assistant", "content": [{"type": "thinking"}]}]})


def test_the_same_reasoning_twice_is_one_and_different_reasoning_is_refused() -> None:
    assert parse(answered(reasoning="r", reasoning_content="r")).messages[1].parts[0] == ReasoningPart("r")
    with pytest.raises(SampleError, match="different reasoning under 'reasoning' and 'thinking'"):
        parse(answered(reasoning="r", thinking="s"))


def test_reasoning_that_belongs_to_no_answer_is_refused() -> None:
    pair = {"query": "q", "chosen": "a", "rejected": "b", "thinking": "hm"}
    with pytest.raises(SampleError, match="reasoning next to the answers of a pair"):
        parse(pair)
    with pytest.raises(SampleError, match="reasoning next to a list of messages"):
        parse({"prompt": [QUESTION], "completion": [{"role": "assistant", "content": "a"}], "reasoning": "r"})


@pytest.mark.parametrize("name", RECORDS)
def test_unknown_keys_of_records_are_reported(name: str) -> None:
    record = RECORDS[name]
    assert parse({**record, "mood": "blue", "empty": "", "none": None, "id": 7}).notices == (
        "key 'mood' of a record is not read",
    )
    assert not parse(record).notices


def test_unknown_keys_of_messages_and_parts_are_reported() -> None:
    assert parse(answered(mood="blue")).notices == ("key 'mood' of a message is not read",)
    assert parse(shared(mood="blue")).notices == ("key 'mood' of a message is not read",)
    assert parse(text_info(mood="blue")).notices == ("key 'mood' of a message is not read",)
    assert parse(parts(mood="blue", cache_control={"type": "ephemeral"})).notices == (
        "key 'mood' of a part is not read",
    )


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("key", REFUSED["record"])
def test_keys_of_records_that_change_what_is_trained_are_refused_by_name(name: str, key: str) -> None:
    neutral, _ = REFUSED["record"][key]
    for value in (*neutral, None):
        assert not parse({**RECORDS[name], key: value}).notices
    with pytest.raises(SampleError, match=f'the record: "{key}"'):
        parse({**RECORDS[name], key: 0.5})


@pytest.mark.parametrize("key", REFUSED["message"])
def test_keys_of_messages_that_change_what_is_trained_are_refused_by_name(key: str) -> None:
    neutral, _ = REFUSED["message"][key]
    for value in (*neutral, None):
        assert not parse(answered(**{key: value})).notices
    with pytest.raises(SampleError, match=f'message 2: "{key}"'):
        parse(answered(**{key: "x"}))


def test_no_key_has_two_meanings() -> None:
    for level, refused in REFUSED.items():
        assert not set(refused) & HARMLESS[level]
    for level in ("message", "part"):
        assert not {*LOSS_SWITCHES, *REASONING} & {*REFUSED[level], *HARMLESS[level]}


def test_an_answer_that_is_a_refusal_is_an_answer() -> None:
    message = {"role": "assistant", "content": None, "refusal": "I cannot."}
    assert parse({"messages": [QUESTION, message]}).messages[1].parts == (TextPart("I cannot."),)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "assistant", "content": "I love music"}]},
        {"conversations": [{"from": "gpt", "value": "I love music"}]},
    ],
)
def test_a_lone_answer_is_text_for_pretraining(record: dict[str, Any]) -> None:
    found = parse(record)
    assert [(m.role, m.parts, m.trained) for m in found.messages] == [
        ("text", (TextPart("I love music"),), True)
    ]
    assert found.notices == ("a lone assistant message is read as text for continued pre-training",)


def test_a_lone_answer_with_more_than_text_is_refused() -> None:
    alone = {"role": "assistant", "content": "a"}
    for record in (
        {"messages": [{**alone, "reasoning": "r"}]},
        {"messages": [alone], "tools": [{"name": "f"}]},
        {"conversations": [{"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]},
    ):
        with pytest.raises(SampleError, match="a lone assistant message is text"):
            parse(record)
