from typing import Any

import pytest

from erniekit.data.chat.conversation import ImagePart, SampleError, TextPart
from tests.unit.data.formats.parsing import outline, parse


@pytest.mark.parametrize(
    ("instruction", "more", "question"),
    [
        ("Sum up:", "a text", "Sum up:\na text"),
        (" Sum up:\n", " a text ", " Sum up:\n\n a text "),
        ("Sum up.", "", "Sum up."),
        ("Sum up.", None, "Sum up."),
        ("", "a text", "a text"),
        ("I am {{name}}", None, "I am {{name}}"),
    ],
)
def test_the_question_is_instruction_and_input(instruction: str, more: Any, question: str) -> None:
    found = parse({"instruction": instruction, "input": more, "output": " a {{name}} "})
    assert outline(found.messages) == [("user", question, False), ("assistant", " a {{name}} ", True)]


def test_history_and_system_come_before() -> None:
    found = parse(
        {
            "instruction": "q",
            "output": "a",
            "system": "s",
            "history": [["<image>one", "1"], ["two", "2"]],
            "images": ["1.png"],
            "tools": '[{"name": "f"}]',
        }
    )
    assert found.messages[1].parts == (ImagePart("/data/1.png"), TextPart("one"))
    assert [message.role for message in found.messages] == ["system", *["user", "assistant"] * 3]
    assert [message.trained for message in found.messages] == [False, *[False, True] * 3]
    assert outline(found.messages[2:]) == [
        ("assistant", "1", True),
        ("user", "two", False),
        ("assistant", "2", True),
        ("user", "q", False),
        ("assistant", "a", True),
    ]
    assert found.tools == ({"type": "function", "function": {"name": "f"}},)
    assert (
        parse({"instruction": "q", "output": "a", "system": None, "history": []}).messages
        == (found.messages[-2:])
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"instruction": None, "output": "a"}, '"instruction" must be a string, not null'),
    ({"instruction": 3, "output": "a"}, '"instruction" must be a string, not a number'),
    ({"instruction": "q", "input": 3, "output": "a"}, '"input" must be a string, not a number'),
    ({"instruction": "q"}, '"output" must be a string, not null or missing'),
    ({"instruction": "q", "output": None}, '"output" must be a string, not null'),
    ({"instruction": "q", "output": 7}, '"output" must be a string, not a number'),
    ({"instruction": "q", "output": ["a", "b"]}, '"output" must be a string, not an array'),
    ({"instruction": "q", "output": ""}, "answer is empty"),
    ({"instruction": "q", "output": "a", "system": 1}, '"system" must be a string'),
    ({"instruction": "q", "output": "a", "history": "x"}, '"history" must be a list'),
    ({"instruction": "q", "output": "a", "history": ["x"]}, '"history", turn 1 must be two strings'),
    ({"instruction": "q", "output": "a", "history": [["x"]]}, '"history", turn 1 must be two strings'),
    ({"instruction": "q", "output": "a", "history": [["x", "y"], ["x", None]]}, '"history", turn 2 must be a str'),
    ({"instruction": "q", "output": "a", "history": [["x", ""]]}, '"history", turn 1: .* empty'),
    ({"instruction": "<image>", "output": "a"}, "1 <image> mark.* 0 image"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "message"), BAD)
def test_bad_records_say_what_is_wrong(record: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        parse(record)
    assert str(caught.value).startswith("f.jsonl:7: ")
