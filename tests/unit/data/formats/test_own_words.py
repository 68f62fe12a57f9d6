"""Errors and notices about a record say its own keys and values, in any format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.data.chat.conversation import Conversation, SampleError
from erniekit.data.formats import parse_record
from erniekit.data.formats.fields.context import describe_value
from tests.unit.data.helpers import qa


def _parsed(record: Any) -> Conversation:
    return parse_record(record, format="auto", base_dir=Path(), sample_id="f:1")


ASK = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": ASK}, "must be a list of at least one message, not an object with the keys 'role', 'content'"),
        ({"messages": "Hi there"}, "not a string ('Hi there')"),
        ({"messages": json.dumps([ASK])}, "not a string of JSON text ('[{\"role\": \"user\", \"content\": \"q\"}]')"),
        ({"conversations": "{}"}, "\"conversations\" must be a list of at least one message, not a string of JSON"),
        ({"messages": [["user", "q"]]}, "message 1 must be an object with role and content, not an array (['user',"),
        ({"messages": ["user: q"]}, "message 1 must be an object with role and content, not a string ('user: q')"),
        ({"messages": [{"speaker": "A", "text": "q"}]}, "message 1: no role, only the keys 'speaker', 'text'; allowed"),
        ({"messages": [{"role": "user", "text": "q"}]}, "has no \"content\", only the keys 'role', 'text'"),
        ({"messages": [{"role": "user", "content": {"q": 1}}]}, "not an object with the key 'q'"),
        ({"messages": [{"role": "user", "content": [{"text": "q"}]}]}, "the part is an object with the key 'text'"),
        ({"messages": [{"role": "user", "content": [{"type": 5}]}]}, "not 5 in an object with the key 'type'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 'needs the key "image", it has the key'),
        ({"conversations": [{"speaker": "A", "value": "q"}]}, "no \"from\", only the keys 'speaker', 'value'"),
        ({"conversations": [{"from": "human", "text": "q"}]}, '"value" must be a string, not null or missing'),
        ({"instruction": 5, "output": "a"}, '"instruction" must be a string, not a number (5)'),
        ({"instruction": "q", "output": True}, '"output" must be a string, not a boolean (True)'),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, "not an array (['x'])"),
        ({"text": ["a"]}, "\"text\" must be a string, not an array (['a'])"),
        ([ASK], "a sample must be a JSON object, this is an array ([{'role'"),
        ({"dialogue": [], "id": 7}, 'found: "dialogue", "id"'),
    ],
)  # fmt: skip
def test_errors_say_what_the_record_says(record: Any, message: str) -> None:
    with pytest.raises(SampleError) as error:
        _parsed(record)
    assert message in str(error.value)
    assert str(error.value).startswith("f:1: ")


def test_what_a_record_says_stays_short() -> None:
    for value in ("x" * 10_000, list(range(10_000)), {f"key {n}" * 99: n for n in range(99)}):
        assert len(describe_value(value)) < 1100
    assert describe_value({f"k{n}": n for n in range(12)}).endswith("'k9', 2 more")
    assert describe_value({}) == "an object with no keys"
    assert describe_value("[" * 100_000).startswith("a string ('[[[")
    assert "\u202e" not in describe_value("a\u202eb") and "\n" not in describe_value("a\nb")


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Who are you?", "output": "I am {{name}}, made by {{author}}. {{name}}!"},
        qa("I am {{name}}, made by {{author}}."),
        {"conversations": [{"from": "human", "value": "{{author}}?"}, {"from": "gpt", "value": "{{name}}"}]},
        {"prompt": "{{author}}?", "chosen": "yes", "rejected": "{{name}}"},
    ],
)
def test_placeholders_are_noticed(record: Any) -> None:
    assert sorted(_parsed(record).notices) == [
        "placeholder {{author}} is not filled in",
        "placeholder {{name}} is not filled in",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{name}",
        "{{}}",
        "f'{{{x}}}'",
        "{{x}}",
        "{{ user.name }}",
        "{{ n | length }}",
        "a {{\nb\n}}",
        '{"a":{"b":{}}}',
    ],
)
def test_braces_of_code_are_no_placeholders(text: str) -> None:
    assert _parsed(qa(text)).notices == ()


def test_a_text_to_go_on_with_has_no_placeholders() -> None:
    assert _parsed({"text": "{{name}} is a template."}).notices == ()
