from typing import Any

import pytest

from erniekit.data.chat.conversation import ImagePart, SampleError, TextPart
from tests.unit.data.formats.parsing import outline, parse

PAIRS = [("query", "response"), ("prompt", "completion"), ("question", "answer"), ("prompt", "response")]


@pytest.mark.parametrize(("question", "answer"), PAIRS)
def test_every_pair_of_keys(question: str, answer: str) -> None:
    record = {question: " q ", answer: "a\n", "id": 7}
    found = parse(record)
    assert outline(found.messages) == [("user", " q ", False), ("assistant", "a\n", True)]
    assert parse(record, "query_response") == found


def test_history_system_and_images() -> None:
    found = parse(
        {
            "query": "<image>q",
            "response": "a",
            "system": "s",
            "history": [["one", "1"]],
            "images": [{"path": "1.png", "bytes": None}],
        }
    )
    assert [message.role for message in found.messages] == ["system", *["user", "assistant"] * 2]
    assert found.messages[3].parts == (ImagePart("/data/1.png"), TextPart("q"))


def test_of_a_prompt_of_messages_nothing_carries_loss() -> None:
    prompt = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ]
    found = parse({"prompt": prompt, "completion": [{"role": "assistant", "content": "2"}]})
    assert outline(found.messages) == [
        ("system", "s", False),
        ("user", "one", False),
        ("assistant", "1", False),
        ("user", "two", False),
        ("assistant", "2", True),
    ]
    assert parse({"prompt": prompt, "completion": "2"}) == found


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"query": None, "response": None}, "bad record", '"query" must be a string, not null'),
    ({"query": "q", "response": None}, "bad record", '"response" must be a string, not null'),
    ({"prompt": 3, "completion": "a"}, "bad record", '"prompt" must be a string, not a number'),
    ({"prompt": "q", "completion": 3}, "bad record", '"completion" must be a string, not a number'),
    ({"question": "q", "answer": ""}, "bad record", '"answer": the assistant\'s answer is empty'),
    ({"prompt": [], "completion": "a"}, "bad record", '"prompt" must be a list of at least one message'),
    ({"prompt": ["q"], "completion": "a"}, "bad record", '"prompt", message 1 must be an object'),
    ({"prompt": "q", "completion": [{"role": "x"}]}, "unknown role", '"completion", message 1: unknown role'),
    ({"prompt": "q", "completion": "a", "label": True}, "not supported", "KTO"),
    ({"query": "q", "response": "a", "images": ["1.png"]}, "images do not match", "0 <image> mark"),
]


@pytest.mark.parametrize(("record", "reason", "message"), BAD)
def test_bad_records_say_what_is_wrong(record: Any, reason: str, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        parse(record)
    assert caught.value.reason == reason
