"""Tools and calls that went through Arrow are trained as they were before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from erniekit.data.chat.conversation import Conversation, ToolCallPart
from erniekit.data.files.reader import Record, read_records
from erniekit.data.formats import parse_record
from erniekit.data.formats.fields.arrow_nulls import clean_arguments, clean_schema
from tests.unit.data.formats.parsing import parse


def schema(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    found = {"type": "object", "properties": properties}
    return found if required is None else {**found, "required": required}


def record(name: str, parameters: Any, arguments: Any, **keys: Any) -> dict[str, Any]:
    function = {"name": name, "parameters": parameters} if parameters is not None else {"name": name}
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    return {"messages": messages, "tools": [{"type": "function", "function": function}], **keys}


ROWS = [
    record("add", schema(["a"], a={"type": "number"}), {"a": 2.5}),
    record("city", schema(["name"], name={"type": "string", "description": "Which"}), {"name": "X"}),
    record(
        "pick",
        schema(n={"type": "integer"}, kind={"type": "string", "enum": ["a", "b"]}),
        {"n": 3, "kind": "a"},
    ),
    # `a` is a number above and whole here: Arrow makes floats of both.
    record("count", schema(a={"type": "integer"}), {"a": 7}),
    record("now", None, {}),
    record("any", {}, {}),
    record("none", schema(), {}),
    record(
        "deep",
        schema(
            where=schema(
                lat={"type": "number"}, tags={"type": "array", "items": schema(t={"type": "string"})}
            )
        ),
        {"where": {"lat": 1.5, "tags": [{"t": "x"}]}},
    ),
    record("deep", schema(where=schema(city={"type": "string"})), {"where": {"city": "Y"}}),
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
]


def written(path: Path, rows: list[dict[str, Any]]) -> list[Conversation]:
    """The rows as they are read from parquet."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    items = [item for item in read_records(path) if isinstance(item, Record)]
    return [
        parse_record(one.value, format="auto", base_dir=path.parent, sample_id="f.jsonl:7") for one in items
    ]


def test_rows_of_parquet_are_what_they_were(tmp_path: Path) -> None:
    found = written(tmp_path / "a.parquet", ROWS)
    for row, read in zip(ROWS, found, strict=True):
        source = parse(row)
        assert json.dumps(read.tools) == json.dumps(source.tools)
        assert read.messages == source.messages
        assert not source.notices
    notices = {text for read in found for text in read.notices}
    assert len(notices) == 2 and all("Arrow" in text for text in notices)


def test_texts_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = [record("f", schema(a={"type": "string"}), '{"a":  null}'), record("g", None, '{"b": null}')]
    found = written(tmp_path / "a.parquet", rows)
    calls = [
        part.arguments for read in found for part in read.messages[1].parts if isinstance(part, ToolCallPart)
    ]
    assert calls == ['{"a":  null}', '{"b": null}']
    shared = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": null}}'},
    ]
    assert parse({"conversations": shared}).messages[1].parts == (ToolCallPart("f", '{"a": null}'),)


def test_maps_are_objects(tmp_path: Path) -> None:
    call = pyarrow.struct(
        [("name", pyarrow.string()), ("arguments", pyarrow.map_(pyarrow.string(), pyarrow.string()))]
    )
    message = pyarrow.struct(
        [("role", pyarrow.string()), ("content", pyarrow.string()), ("tool_calls", pyarrow.list_(call))]
    )
    calls = [{"name": "f", "arguments": [("city", "X"), ("unit", None)]}]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": calls}]
    table = pyarrow.table({"messages": pyarrow.array([turns], pyarrow.list_(message))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (item,) = read_records(tmp_path / "a.parquet")
    assert isinstance(item, Record)
    assert parse(item.value).messages[1].parts == (ToolCallPart("f", '{"city": "X"}'),)


OPTIONAL = {"anyOf": [{"type": "string"}, {"type": "null"}]}


@pytest.mark.parametrize(
    "declared",
    [
        {"type": ["string", "null"]},
        {"type": "string", "nullable": True},
        {"type": "null"},
        OPTIONAL,
        {"oneOf": [OPTIONAL]},
        {"allOf": [OPTIONAL], "description": "d"},
        {"$ref": "#/$defs/maybe"},
        {"enum": ["a", None]},
        {},
        {"description": "anything"},
        True,
        {"type": "Optional[str]"},
        {"type": "any"},
    ],
)
def test_a_null_that_the_schema_allows_stays(declared: Any) -> None:
    parameters = {**schema(["a"], a=declared, b={"type": "string"}), "$defs": {"maybe": OPTIONAL}}
    assert clean_arguments({"a": None, "b": None}, parameters) == {"a": None}
    inside = schema(x=parameters | {"$defs": None}, list={"type": "array", "items": parameters})
    inside["$defs"] = {"maybe": OPTIONAL}
    value = {"a": None, "b": None, "c": None}
    assert clean_arguments({"x": value, "list": [value]}, inside) == {"x": {"a": None}, "list": [{"a": None}]}


@pytest.mark.parametrize(
    "declared",
    [
        {"type": "string"},
        {"type": ["string", "integer"]},
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"enum": ["a"]},
        {"const": "a"},
        {"properties": {}},
        {"$ref": "#/$defs/circle"},
        {"$ref": "#/$defs/none"},
        {"$ref": "http://x/y"},
        {"type": "str, optional"},
        False,
    ],
)
def test_a_null_that_the_schema_does_not_allow_goes(declared: Any) -> None:
    circle = {"anyOf": [{"$ref": "#/$defs/circle"}, {"type": "string"}]}
    for required in (None, ["a"]):
        parameters = {**schema(required, a=declared), "$defs": {"circle": circle}}
        assert clean_arguments({"a": None}, parameters) == {}


def test_nulls_without_a_schema() -> None:
    for parameters in (None, {}, {"type": "object"}, schema()):
        value = {"a": None, "b": {"c": None, "d": [None, {"e": None}]}, "f": 2.0}
        assert clean_arguments(value, parameters) == {"b": {"d": [None, {}]}, "f": 2.0}
    free = {"type": "object", "additionalProperties": {"type": ["number", "null"]}}
    assert clean_arguments({"a": None, "b": 1.0}, free) == {"a": None, "b": 1.0}


def test_whole_numbers_of_the_type_integer() -> None:
    def cleaned(kind: Any, value: Any) -> str:
        return json.dumps(clean_arguments({"a": value}, schema(a={"type": kind})))

    assert cleaned("integer", 2.0) == '{"a": 2}'
    assert cleaned(["integer", "null"], -0.0) == '{"a": 0}'
    assert cleaned("integer", 2.5) == '{"a": 2.5}'
    assert cleaned("number", 2.0) == '{"a": 2.0}'
    assert cleaned(["number", "integer"], 2.0) == '{"a": 2.0}'
    many = schema(a={"type": "array", "items": {"type": "integer"}})
    assert json.dumps(clean_arguments({"a": [1.0, 2]}, many)) == '{"a": [1, 2]}'


def test_whole_numbers_in_schemas() -> None:
    limits = {"type": "integer", "minimum": 0, "default": 2, "enum": [1, 2], "description": "d"}
    floats = {**limits, "minimum": 0.0, "default": 2.0, "enum": [1.0, 2.0]}
    assert json.dumps(clean_schema(floats)) == json.dumps(limits)
    both = {"type": ["integer", "array"], "items": {"type": "string", "enum": None}}
    assert clean_schema(both) == {**both, "items": {"type": "string"}}
    counts = {"type": "array", "minItems": 1.0, "items": {"type": "number", "minimum": 0.0}}
    assert json.dumps(clean_schema(counts)) == json.dumps({**counts, "minItems": 1})


def test_schemas_keep_what_they_say() -> None:
    kept = {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {
                "default": {"type": "string", "default": ""},
                "a": {**OPTIONAL, "default": None},
                "b": {"enum": [None, "x"], "default": None},
                "c": {"type": "null", "const": None},
                "d": {},
                "e": {"default": {"x": None}, "examples": [{"y": None}]},
            },
            "required": [],
            "additionalProperties": False,
        },
    }
    assert clean_schema(kept) == kept
    filled = json.loads(json.dumps(kept))
    properties = filled["parameters"]["properties"]
    filled |= {"strict": None, "description": None}
    filled["parameters"] |= {"$defs": None, "anyOf": None}
    properties |= {"f": None}
    properties["default"] |= {"enum": None, "description": None, "items": None, "const": None}
    properties["a"] |= {"type": None, "enum": None}
    properties["a"]["anyOf"][0] |= {"default": None}
    assert clean_schema(filled) == kept
    assert clean_schema({"type": "string", "default": None}) == {"type": "string"}


def test_both_forms_in_one_file() -> None:
    empty = {"name": None, "description": None, "arguments": {"a": None}}
    call = {"name": "f", "arguments": {"a": "x"}}
    for filled in ({**call, "type": None, "function": empty}, {"function": call, **empty}):
        messages = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "tool_calls": [filled], "content": None},
        ]
        assert parse({"messages": messages}).messages[1].parts == (ToolCallPart("f", '{"a": "x"}'),)
    for tool in (
        {"type": None, "name": "f", "function": empty},
        {"type": "function", "function": {"name": "f"}, **empty},
    ):
        record = {"messages": [{"role": "user", "content": "q"}], "tools": [tool]}
        assert parse(record).tools == ({"type": "function", "function": {"name": "f"}},)


def test_calls_that_arrow_filled_are_no_calls() -> None:
    for key, value in (
        ("function_call", {"name": None, "arguments": None}),
        ("function_call", {"name": None, "arguments": {"a": None}}),
        ("tool_calls", []),
        ("tool_calls", "null"),
    ):
        answers = [{"role": role, "content": role, key: value} for role in ("user", "assistant")]
        assert [len(message.parts) for message in parse({"messages": answers}).messages] == [1, 1]
