"""Columns under names of a source's own."""

from __future__ import annotations

import pytest

from erniekit.data.conversation import SampleError
from erniekit.data.formats.columns import read_columns, renamed
from erniekit.errors import DataError


def test_records_have_the_keys_of_a_format() -> None:
    columns = read_columns({"messages": "dialogue", "images": "pics"}, "a.jsonl")
    record = {"dialogue": [1], "pics": ["a.png"], "id": 3}
    assert renamed(record, columns, "f:1") == {"messages": [1], "images": ["a.png"], "id": 3}
    assert renamed({"dialogue": [1]}, columns, "f:1") == {"messages": [1]}
    assert renamed({"dialogue": [1], "messages": "rendered"}, columns, "f:1") == {"messages": [1]}
    assert renamed([3], columns, "f:1") == [3]
    assert renamed(record, (), "f:1") is record


def test_columns_can_change_places() -> None:
    columns = read_columns({"query": "response", "response": "query"}, "a.jsonl")
    assert renamed({"query": "a", "response": "q"}, columns, "f:1") == {"query": "q", "response": "a"}


def test_a_record_without_a_needed_column_is_named() -> None:
    columns = read_columns({"messages": "dialog"}, "a.jsonl")
    with pytest.raises(SampleError, match="f:1: columns: the record has no \"dialog\"; it has 'dialogue'"):
        renamed({"dialogue": []}, columns, "f:1")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"mesages": "dialogue"},
            'a.jsonl: columns: no format reads the key "mesages" .*did you mean "messages"',
        ),
        ({"query": "x", "response": "x"}, 'columns: "x" stands for two keys'),
    ],
)
def test_wrong_columns_are_named(names: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_columns(names, "a.jsonl")
