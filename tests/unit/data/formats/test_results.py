"""Results of tools belong to calls: by id, by name, or in order; whatever does not fit is a fault with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from erniekit.data.chat.conversation import SampleError
from tests.unit.data.formats.parsing import outline, parse

ASKED = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def call(name: str, id: Any = None, **keys: Any) -> dict[str, Any]:
    entry = {"type": "function", "function": {"name": name, "arguments": {}}, **keys}
    return entry if id is None else {**entry, "id": id}


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text, **keys}


def results(*messages: dict[str, Any]) -> list[str]:
    """The texts of the results, in their order."""
    found = parse({"messages": [ASKED, *messages]}).messages
    return [text for role, text, _ in outline(found) if role == "tool"]


FISH, BIRD = call("fish", "k1"), call("bird", "k2")


def test_results_stand_in_the_order_of_the_calls_by_their_ids() -> None:
    swapped = [result("sings", tool_call_id="k2"), result("swims", tool_call_id="k1"), ANSWER]
    assert results(calling(FISH, BIRD), *swapped) == ["swims", "sings"]
    assert results(calling(BIRD, FISH), *swapped) == ["sings", "swims"]
    # Numbers are ids as well, and ids may come again in a later turn.
    numbered = (
        calling(call("f", 1), call("f", 2)),
        result("two", tool_call_id="2"),
        result("one", tool_call_id=1),
    )
    assert results(*numbered, ANSWER, ASKED, *numbered, ANSWER) == ["one", "two", "one", "two"]


@pytest.mark.parametrize("key", ["tool_call_id", "call_id", "tool_use_id", "id"])
def test_ids_under_every_name(key: str) -> None:
    swapped = [result("sings", **{key: "k2"}), result("swims", **{key: "k1"})]
    assert results(calling(FISH, BIRD), *swapped) == ["swims", "sings"]


def test_the_id_of_a_message_is_not_that_of_a_call() -> None:
    assert results(calling(FISH, BIRD), result("x", id="m7"), result("y", id="m8")) == ["x", "y"]


def test_results_without_ids_go_by_names_or_in_order() -> None:
    swapped = [result("sings", name="bird"), result("swims", name="fish")]
    assert results(calling(FISH, BIRD), *swapped) == ["swims", "sings"]
    again = calling(call("f"), call("g"), call("f"))
    named = [result("g1", name="g"), result("f1", name="f"), result("f2", name="f")]
    assert results(again, *named) == ["f1", "g1", "f2"]
    assert results(calling(call("f"), call("g")), result("1"), result("2")) == ["1", "2"]
    # Ids say nothing where the calls have none; those of some go first.
    assert results(calling(call("f"), call("g")), result("1", tool_call_id="x"), result("2")) == ["1", "2"]
    assert results(calling(call("f"), BIRD), result("1", tool_call_id="k2"), result("2")) == ["2", "1"]


def test_calls_and_results_in_turn() -> None:
    turns = [calling(call("f", "k1")), result("1", tool_call_id="k1")]
    turns += [calling(call("f", "k2")), result("2", tool_call_id="k2"), ANSWER]
    assert results(*turns) == ["1", "2"]


def test_a_chat_may_end_with_its_calls() -> None:
    assert results(calling(FISH, BIRD)) == []


def test_a_list_in_one_message_holds_the_results_of_parallel_calls() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps([{"name": "f"}, {"name": "f"}])},
        {"from": "observation", "value": '[{"age": 31}, "猫"]'},
        {"from": "gpt", "value": "a"},
    ]
    found = parse({"conversations": turns})
    assert outline(found.messages)[2:4] == [("tool", '{"age": 31}', False), ("tool", "猫", False)]
    assert any("is split" in text for text in found.notices)
    assert results(calling(call("f")), result("[1, 2]")) == ["[1, 2]"]


def test_calls_that_are_text_take_any_results() -> None:
    text = {"role": "assistant", "content": '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'}
    found = parse({"messages": [ASKED, text, result("x"), result("y"), ANSWER]})
    assert [role for role, _, _ in outline(found.messages)] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert len(found.notices) == 1


FAULTS: list[tuple[list[dict[str, Any]], str]] = [
    (
        [calling(FISH, BIRD), result("x", tool_call_id="k1"), result("y", tool_call_id="k9"), ANSWER],
        r"message 4: tool_call_id 'k9' matches none of the calls in message 2 \('k1', 'k2'\)",
    ),
    (
        [calling(FISH, BIRD), result("x", tool_call_id="k1"), ANSWER],
        r"message 2: the result of its tool call 2 \('bird', id 'k2'\) is missing before message 4",
    ),
    (
        [calling(FISH, BIRD), result("x", tool_call_id="k2")],
        r"call 1 \('fish', id 'k1'\) is missing at the end",
    ),
    (
        [calling(call("f"), call("g")), result("x"), ANSWER],
        r"call 2 \('g'\) is missing before message 4: 2 calls, 1",
    ),
    ([calling(FISH), ANSWER], "message 2: the result of its tool call 1 .* is missing before message 3"),
    ([calling(FISH), ASKED, ANSWER], "message 2: the result .* is missing before message 3"),
    (
        [calling(FISH), calling(BIRD), result("x"), ANSWER],
        "message 2: the result .* is missing before message 3",
    ),
    ([result("x"), ANSWER], "message 2: the result of a tool, but message 1 has no tool_calls"),
    ([ANSWER, result("x"), ANSWER], "message 3: the result of a tool, but message 2 has no tool_calls"),
    (
        [calling(FISH), result("x", tool_call_id="k1"), ANSWER, result("y", tool_call_id="k1"), ANSWER],
        "message 5: the result of a tool, but message 4 has no tool_calls",
    ),
    (
        [calling(FISH), result("x", tool_call_id="k1"), result("y", tool_call_id="k1")],
        "message 4: a second result for tool_call_id 'k1'",
    ),
    (
        [calling(call("f"), call("g")), result("x", tool_call_id="k"), result("y", tool_call_id="k")],
        "message 4: a second result for tool_call_id 'k'",
    ),
    (
        [calling(call("f")), result("x"), result("y")],
        "message 4: too many results: message 2 has 1 call, but there are 2",
    ),
    (
        [
            calling(call("f", "k"), call("g", "k")),
            result("x", tool_call_id="k"),
            result("y", tool_call_id="k"),
        ],
        "message 2: 2 of its tool calls have the id 'k'",
    ),
    (
        [calling(FISH), result("x", tool_call_id="k1", name="bird")],
        "message 3: its name 'bird' differs from its call in message 2, 'fish'",
    ),
    ([calling(call("f"), call("g")), result("x", name="g"), result("y")], "message 3: its name 'g' differs"),
]


@pytest.mark.parametrize(("messages", "message"), FAULTS)
def test_what_does_not_fit_is_a_fault(messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        parse({"messages": [ASKED, *messages]})
    assert caught.value.reason == "results do not match calls"


def test_the_first_message_is_no_result() -> None:
    with pytest.raises(SampleError, match="message 1: the result of a tool without a message before it"):
        parse({"messages": [result("x"), ANSWER]})


@pytest.mark.parametrize("wrong", [True, 1.5, ["k1"], {"id": "k1"}])
def test_ids_are_texts(wrong: Any) -> None:
    for messages in ([calling(call("f", wrong))], [calling(FISH), result("x", tool_call_id=wrong)]):
        with pytest.raises(SampleError, match="the id of a tool call must be a string"):
            parse({"messages": [ASKED, *messages]})


def test_every_format_matches_results() -> None:
    calls = [{"name": "fish", "id": "k1"}, {"name": "bird", "id": "k2"}]
    shared = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(calls)},
            {"from": "observation", "value": "sings", "tool_call_id": "k2"},
            {"from": "observation", "value": "swims", "tool_call_id": "k1"},
            {"from": "gpt", "value": "a"},
        ]
    }
    info = {
        "text_info": [
            {"text": "q", "tag": "mask"},
            {"text": "", "tag": "no_mask", "tool_calls": calls},
            {"text": "sings", "tag": "mask", "tool_response": 1, "tool_call_id": "k2"},
            {"text": "swims", "tag": "mask", "tool_response": 1, "tool_call_id": "k1"},
            {"text": "a", "tag": "no_mask"},
        ]
    }
    openai = [
        ASKED,
        calling(FISH, BIRD),
        result("sings", tool_call_id="k2"),
        result("swims", tool_call_id="k1"),
    ]
    prompts = {"prompt": openai, "completion": [ANSWER]}
    pair = {"messages": openai, "chosen": ANSWER, "rejected": "b"}
    answers = {"messages": [ASKED], "chosen": [*openai[1:], ANSWER], "rejected": "b"}
    for record in (shared, info, prompts, pair, answers):
        found = parse(record)
        assert [text for role, text, _ in outline(found.messages) if role == "tool"] == ["swims", "sings"]
        assert not found.notices
    del info["text_info"][3]
    with pytest.raises(
        SampleError, match=r"text_info\[1\]: the result of its tool call 1 .* before text_info\[3\]"
    ):
        parse(info)
    with pytest.raises(SampleError, match=r'"prompt", message 2: the result .* is missing at the end'):
        parse({"prompt": openai[:2], "completion": [ANSWER]})


def test_blocks_of_anthropic_are_calls_and_results() -> None:
    def use(name: str, id: str) -> dict[str, Any]:
        return {"type": "tool_use", "id": id, "name": name, "input": {"c": "X"}}

    def block(id: str, content: Any, **keys: Any) -> dict[str, Any]:
        return {"type": "tool_result", "tool_use_id": id, "content": content, **keys}

    text = {"type": "text", "text": "I look."}
    messages = [
        ASKED,
        {"role": "assistant", "content": [text, use("fish", "k1"), use("bird", "k2")]},
        {"role": "user", "content": [block("k2", [text]), block("k1", "sun", is_error=True), text]},
        ANSWER,
    ]
    found = parse({"messages": messages})
    assert outline(found.messages)[1:] == [
        ("assistant", 'I look.|fish({"c": "X"})|bird({"c": "X"})', True),
        ("tool", "sun", False),
        ("tool", "I look.", False),
        ("user", "I look.", False),
        ("assistant", "a", True),
    ]
    assert any("is_error" in text for text in found.notices)
    messages[2]["content"] = [block("k2", "x"), block("k1", None)]
    assert [role for role, _, _ in outline(parse({"messages": messages}).messages)][-2:] == [
        "tool",
        "assistant",
    ]
    wrong: list[tuple[Any, Any, str]] = [
        ("user", [text, block("k1", "x")], "tool_result must come before all others"),
        ("assistant", [block("k1", "x")], "parts of type tool_result belong in user messages"),
        ("user", [use("f", "k")], "only the assistant calls tools, not the user"),
        ("assistant", [use("f", "k"), text], "a part follows a call"),
    ]
    for role, content, message in wrong:
        with pytest.raises(SampleError, match=f"message 2.*{message}"):
            parse({"messages": [ASKED, {"role": role, "content": content}, ANSWER]})
    twice = {"role": "assistant", "content": [use("f", "k")], "tool_calls": [call("f")]}
    with pytest.raises(SampleError, match="message 2: calls in the content and in tool_calls"):
        parse({"messages": [ASKED, twice]})
