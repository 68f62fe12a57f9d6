"""Chats as rounds, xLAM's calls, LLaMA-Factory's v1 records and OpenAI's preference files."""

from __future__ import annotations

from typing import Any

import pytest

from erniekit.data.chat.conversation import ImagePart, ReasoningPart, SampleError, TextPart, ToolCallPart
from tests.unit.data.formats.parsing import outline, parse


@pytest.mark.parametrize("key", ["conversation", "conversations"])
@pytest.mark.parametrize(("asked", "answered"), [("human", "assistant"), ("input", "output")])
def test_rounds_of_question_and_answer(key: str, asked: str, answered: str) -> None:
    rounds = [{asked: "q", answered: "a"}, {asked: "r", answered: "b", "train": False}]
    assert outline(parse({key: rounds, "conversation_id": 3}).messages) == [
        ("user", "q", False),
        ("assistant", "a", True),
        ("user", "r", False),
        ("assistant", "b", False),
    ]


def test_rounds_with_a_system_message_reasoning_and_an_image() -> None:
    rounds = [{"system": "s", "input": "<image>q", "output": "a", "reasoning": "hm"}]
    found = parse({"conversation": rounds, "images": ["a.png"]})
    assert [message.role for message in found.messages] == ["system", "user", "assistant"]
    assert found.messages[1].parts == (ImagePart("/data/a.png"), TextPart("q"))
    assert found.messages[2].parts == (ReasoningPart("hm"), TextPart("a"))


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([{"human": "q", "assistant": "a"}, "x"], "round 2 must be an object"),
        (
            [{"human": "q", "assistant": "a"}, {"human": 3, "assistant": "a"}],
            "round 2: 'human' must be a string",
        ),
        ([{"human": "q", "assistant": "a"}, {"human": "q"}], "round 2, 'assistant' must be a string"),
        ([{"human": "q", "assistant": ""}], "round 1, 'assistant': the assistant's answer is empty"),
        ([{"input": "q", "output": "a"}, {"system": "s", "input": "q", "output": "a"}], 'round 2: "system"'),
        ([{"speaker": "q"}], 'message 1: no "from"'),
        ([], '"conversation" must be a list of at least one message, not an empty array'),
        ("q", '"conversation" must be a list'),
    ],
)
def test_bad_rounds_are_named(rounds: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        parse({"conversation": rounds})


def test_messages_under_the_key_conversation() -> None:
    for entries in (
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    ):
        found = parse({"conversation": entries})
        assert outline(found.messages) == [("user", "q", False), ("assistant", "a", True)]


def test_xlam_calls_and_tools() -> None:
    tools = (
        '[{"name": "add", "description": "Adds", "parameters": {"a": {"type": "int", "description": "one"}, '
        '"b": {"type": "float, optional", "default": 1}, "c": {"type": "List[str]"}}}]'
    )
    answers = '[{"name": "add", "arguments": {"a": 2}}, {"name": "add", "arguments": {"a": 3}}]'
    found = parse({"id": 1, "query": "2 and 3", "answers": answers, "tools": tools})
    assert outline(found.messages)[0] == ("user", "2 and 3", False)
    assert found.messages[1].parts == (ToolCallPart("add", '{"a": 2}'), ToolCallPart("add", '{"a": 3}'))
    assert found.tools[0]["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "one"},
            "b": {"type": "number", "default": 1},
            "c": {"type": "array"},
        },
        "required": ["a", "c"],
    }
    assert found.notices == (
        "the parameters of xLAM's tools are rewritten as JSON schemas",
        "a call of 'add' without the required argument 'c'",
    )


def test_xlam_tools_with_a_schema_stay_as_they_are() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    tools = [{"name": "f", "parameters": schema}]
    found = parse({"query": "q", "answers": [{"name": "f", "arguments": {}}], "tools": tools})
    assert found.tools[0]["function"]["parameters"] == schema and not found.notices


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("[]", "tool calls must be a list"),
        ("nothing", "not valid JSON"),
        ([{"arguments": {}}], "has no name"),
    ],
)
def test_bad_xlam_calls(answers: Any, message: str) -> None:
    with pytest.raises(SampleError, match=f'"answers".*{message}'):
        parse({"query": "q", "answers": answers, "tools": [{"name": "f"}]})


def _value(kind: str, value: Any) -> dict[str, Any]:
    return {"type": kind, "value": value}


def test_llamafactory_v1_messages() -> None:
    call = '{"name": "f", "arguments": {"x": 1}}'
    content = [_value("reasoning", "hm"), _value("text", "I look."), _value("tool_call", call)]
    found = parse(
        {
            "tools": '[{"name": "f"}]',
            "messages": [
                {
                    "role": "user",
                    "content": [_value("image_url", "a.png"), _value("text", "q")],
                    "loss_weight": 0.0,
                },
                {"role": "assistant", "content": content, "loss_weight": 0.0},
                {"role": "tool", "content": [_value("text", "7")], "loss_weight": 0.0},
                {"role": "assistant", "content": [_value("text", "seven")], "loss_weight": 1.0},
            ],
        }
    )
    assert [message.trained for message in found.messages] == [False, False, False, True]
    assert found.messages[0].parts == (ImagePart("/data/a.png"), TextPart("q"))
    assert found.messages[1].parts == (
        ReasoningPart("hm"),
        TextPart("I look."),
        ToolCallPart("f", '{"x": 1}'),
    )
    assert not found.notices


def test_llamafactory_v1_pairs() -> None:
    def chat(answer: str) -> list[dict[str, Any]]:
        question = {"role": "user", "content": [_value("text", "q")], "loss_weight": 0.0}
        return [question, {"role": "assistant", "content": [_value("text", answer)], "loss_weight": 1.0}]

    found = parse({"chosen_messages": chat("a"), "rejected_messages": chat("b"), "extra_info": ""})
    assert outline(found.messages) == [("user", "q", False), ("assistant", "a", True)]
    assert outline(found.rejected) == [("assistant", "b", True)]
    with pytest.raises(SampleError, match='"chosen_messages" needs "rejected_messages"'):
        parse({"chosen_messages": chat("a"), "messages": chat("b")})


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (_value("text", 3), 'part 1: "value" must be a string, not a number'),
        (_value("reasoning", None), 'part 1: "reasoning" must be a string'),
        (_value("tool_call", "x"), "part 1: the tool call: not valid JSON"),
        (_value("tools", "[]"), "part 1: type must be one of .*tool_call.*, not 'tools'"),
    ],
)
def test_bad_parts_with_a_value(part: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        parse({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [part]}]})


def test_only_the_assistant_calls() -> None:
    part = _value("tool_call", '{"name": "f"}')
    with pytest.raises(SampleError, match="only the assistant calls tools, not the user"):
        parse({"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]})


def test_openai_preference_file() -> None:
    record = {
        "input": {
            "messages": [{"role": "user", "content": "q"}],
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "parallel_tool_calls": True,
        },
        "preferred_output": [{"role": "assistant", "content": "a"}],
        "non_preferred_output": [{"role": "assistant", "content": "b"}],
    }
    found = parse(record)
    assert outline(found.messages) == [("user", "q", False), ("assistant", "a", True)]
    assert outline(found.rejected) == [("assistant", "b", True)]
    assert found.tools[0]["function"]["name"] == "f" and not found.notices
    with pytest.raises(SampleError, match='"input" must be an object with "messages", not a string'):
        parse({**record, "input": "q"})
    del record["preferred_output"]
    with pytest.raises(SampleError, match='"rejected" without "chosen"'):
        parse(record)
