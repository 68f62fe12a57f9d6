import json
from typing import Any

import pytest

from erniekit.data.chat.conversation import ImagePart, SampleError, TextPart, VideoPart
from tests.unit.data.formats.parsing import outline, parse


def chat(*turns: tuple[str, Any], **columns: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **columns}


def test_roles_of_every_name() -> None:
    found = parse(chat(("system", "s"), ("human", " q\n"), ("gpt", "a"), ("user", "r"), ("assistant", "b")))
    assert outline(found.messages) == [
        ("system", "s", False),
        ("user", " q\n", False),
        ("assistant", "a", True),
        ("user", "r", False),
        ("assistant", "b", True),
    ]


def test_calls_and_their_results() -> None:
    call = {"name": "add", "arguments": {"a": 1, "猫": "cat"}}
    tools = [{"name": "add", "parameters": {"type": "object"}}]
    record = chat(
        ("human", "1?"),
        ("function_call", json.dumps(call, ensure_ascii=False)),
        ("observation", '{"sum": 1}'),
        ("gpt", "1."),
        ("human", "2?"),
        ("gpt", "Let me see."),
        ("function_call", [call, {"name": "add", "arguments": '{"a":  2}'}]),
        ("observation", {"sum": 2}),
        ("tool", "3"),
        ("gpt", "2 and 3."),
        tools=json.dumps(tools),
    )
    found = parse(record)
    assert found.tools == ({"type": "function", "function": tools[0]},)
    assert outline(found.messages) == [
        ("user", "1?", False),
        ("assistant", 'add({"a": 1, "猫": "cat"})', True),
        ("tool", '{"sum": 1}', False),
        ("assistant", "1.", True),
        ("user", "2?", False),
        ("assistant", 'Let me see.|add({"a": 1, "猫": "cat"})|add({"a":  2})', True),
        ("tool", '{"sum": 2}', False),
        ("tool", "3", False),
        ("assistant", "2 and 3.", True),
    ]


def test_calls_in_a_row_are_one_turn() -> None:
    one, two = '{"name": "f", "arguments": {}}', '{"name": "g"}'
    calls = chat(("human", "q"), ("function_call", one), ("function_call", two))
    assert outline(parse(calls).messages)[1:] == [("assistant", "f({})|g({})", True)]
    results = [("observation", "x"), ("observation", "y"), ("gpt", "a")]
    turns = [("human", "q"), ("function_call", one), ("function_call", two), *results]
    assert outline(parse(chat(*turns)).messages)[1:] == [
        ("assistant", "f({})|g({})", True),
        ("tool", "x", False),
        ("tool", "y", False),
        ("assistant", "a", True),
    ]


def test_media_columns_and_the_column_system() -> None:
    found = parse(
        chat(
            ("human", "<video><image>?"),
            ("gpt", "<image>"),
            images=["1.jpg"],
            videos="1.mp4",
            system="be brief",
        )
    )
    assert found.messages[0].role == "system"
    assert found.messages[1].parts == (VideoPart("/data/1.mp4"), ImagePart("/data/1.jpg"), TextPart("?"))
    assert found.messages[2].parts == (TextPart("<image>"),)


def test_the_keys_of_openai_are_taken_as_well() -> None:
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "loss": False},
        {"from": "human", "value": "r", "role": None},
        {"from": "gpt", "value": "b", "loss": False},
    ]
    found = parse({"conversations": turns})
    assert [message.trained for message in found.messages] == [False] * 4
    assert [message.role for message in found.messages] == ["user", "assistant"] * 2


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"conversations": None}, "bad record", '"conversations" must be a list'),
    ({"conversations": []}, "bad record", "at least one message"),
    ({"conversations": ["q"]}, "bad record", "message 1 must be an object"),
    (chat(("human", "q"), ("bing", "a")), "unknown role", "message 2: unknown role 'bing'; allowed are human"),
    (chat((3, "q")), "unknown role", "unknown role 3"),  # type: ignore[arg-type]
    ({"conversations": [{"value": "q"}]}, "unknown role", 'message 1: no "from"'),
    ({"conversations": [{"from": "human"}]}, "bad record", r'message 1 \(human\): "value" must be a string, .* null'),
    (chat(("human", ["q"])), "bad record", "not an array"),
    (chat(("gpt", {"text": "a"})), "bad record", "not an object"),
    (chat(("human", "q"), ("gpt", "")), "bad record", "message 2: the assistant's answer is empty"),
    (chat(("human", "q"), ("observation", 3)), "bad record", r"message 2 \(observation\)"),
    (chat(("human", "q"), ("function_call", "f(x)")), "bad tool call", "message 2: the tool call: not valid JSON"),
    (chat(("human", "q"), ("function_call", "[]")), "bad tool call", "message 2: tool calls must be a list"),
    (chat(("human", "q"), ("function_call", "{}")), "bad tool call", "message 2, tool call 1 has no name"),
    (chat(("human", "<image>")), "images do not match", "1 <image> mark.* 0 image"),
    (chat(("human", "q"), tools="x"), "bad tools", "tools: not valid JSON"),
    (chat(("human", "q"), system=["x"]), "bad record", '"system" must be a string, not an array'),
]  # fmt: skip


@pytest.mark.parametrize(("record", "reason", "message"), BAD)
def test_bad_records_say_what_is_wrong_and_where(record: Any, reason: str, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        parse(record)
    assert str(caught.value).startswith("f.jsonl:7: ")
    assert caught.value.reason == reason
