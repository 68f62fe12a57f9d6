from __future__ import annotations

import socket
from typing import Any

import pytest

from erniekit.evaluation.metrics.calls import (
    call_arguments,
    call_match,
    call_name,
    call_none,
    call_valid,
    is_valid,
)
from erniekit.generation.answer import ToolCall

SCHEMA = {
    "type": "object",
    "properties": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}, "note": {"type": "string"}},
    "required": ["digit"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "report", "parameters": SCHEMA}}]


def call(name: str = "report", **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments, "", None)


BROKEN = ToolCall("report", None, '{"name": "report"', "not valid JSON")


@pytest.mark.parametrize(
    ("answer", "reference", "name", "arguments", "match"),
    [
        ([call(digit=3)], [call(digit=3)], 1, 1, 1),
        ([call(digit=3.0)], [call(digit=3)], 1, 1, 1),
        ([call(digit="3")], [call(digit=3)], 1, 0, 0),
        ([call(digit=True)], [call(digit=1)], 1, 0, 0),
        ([call("other", digit=3)], [call(digit=3)], 0, 0, 0),
        ([BROKEN], [call(digit=3)], 1, 0, 0),
        ([], [call(digit=3)], 0, 0, 0),
        ([call(digit=1), call(digit=2)], [call(digit=1)], 0.5, 0.5, 0),
        ([call(digit=1)], [call(digit=1), call(digit=2)], 0.5, 0.5, 0),
        ([call(digit=2), call(digit=1)], [call(digit=1), call(digit=2)], 1, 0, 0),
        ([call(digit=1, note="数")], [call(note="数", digit=1)], 1, 1, 1),
        ([call(digit=1)], [], None, None, None),
    ],
)
def test_calls_are_compared_in_order(
    answer: list[ToolCall],
    reference: list[ToolCall],
    name: float | None,
    arguments: float | None,
    match: float | None,
) -> None:
    assert call_name(answer, reference) == name
    assert call_arguments(answer, reference) == arguments
    assert call_match(answer, reference) == match


@pytest.mark.parametrize(
    ("found", "valid"),
    [
        (call(digit=9), True),
        (call(digit=10), False),
        (call(digit="9"), False),
        (call(), False),
        (call(digit=1, other=2), False),
        (call("other", digit=1), False),
        (BROKEN, False),
    ],
)
def test_a_call_is_valid_if_the_schema_of_its_tool_accepts_it(found: ToolCall, valid: bool) -> None:
    assert is_valid(found, TOOLS) is valid


@pytest.mark.parametrize(
    "schema",
    [None, {}, True, {"type": "dict"}, {"type": "object", "properties": {"digit": {"type": "string", "pattern": "("}}}],
)  # fmt: skip
def test_a_schema_that_is_missing_or_wrong_accepts_any_object(schema: Any) -> None:
    tools = [{"type": "function", "function": {"name": "report", "parameters": schema}}]
    assert is_valid(call(digit="x"), tools)


def test_references_in_a_schema_never_reach_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    schemas = {
        "inside": {"$defs": {"d": {"type": "integer"}}, "properties": {"digit": {"$ref": "#/$defs/d"}}},
        "outside": {"properties": {"digit": {"$ref": "http://example.org/digit.json"}}},
        "endless": {"$ref": "#"},
    }
    tools = [{"function": {"name": name, "parameters": schema}} for name, schema in schemas.items()]
    assert is_valid(call("inside", digit=1), tools) and not is_valid(call("inside", digit="x"), tools)
    assert is_valid(call("outside", digit="x"), tools)
    assert is_valid(call("endless", digit="x"), tools)


def test_shares_of_valid_calls_and_of_none() -> None:
    wanted = [call(digit=1)]
    assert call_valid([call(digit=1), call(digit=99)], wanted, TOOLS) == 0.5
    assert call_valid([], wanted, TOOLS) == 0
    assert call_valid([call(digit=1)], [], TOOLS) is None
    assert call_valid([call(digit=1)], wanted, []) == 0
    assert call_none([], [], TOOLS) == 1
    assert call_none([call(digit=1)], [], TOOLS) == 0
    assert call_none([], wanted, TOOLS) is None
    assert call_none([], [], []) is None
