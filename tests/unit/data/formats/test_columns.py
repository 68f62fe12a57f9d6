"""Columns under names of a source's own."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from erniekit.data.chat.conversation import SampleError
from erniekit.data.files.reader import BadLine, Record, read_records
from erniekit.data.formats.fields.columns import read_columns, renamed
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
        ({"query": "x", "response": "x"}, 'columns: "x" is given to two keys'),
    ],
)
def test_wrong_columns_are_named(names: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_columns(names, "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_files_of_every_kind_have_columns(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    if name == "a.csv":
        path.write_text('number,dialogue\n3,"' + json.dumps(chat).replace('"', '""') + '"\n')
    elif name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"number": ["3"], "dialogue": [chat]}), path)
    else:
        record = {"number": "3", "dialogue": chat}
        path.write_text(json.dumps([record] if name == "a.json" else record) + "\n")
    columns = read_columns({"messages": "dialogue"}, name)
    (found,) = read_records(path, columns=columns)
    assert isinstance(found, Record) and found.value == {"number": "3", "messages": chat}


def test_a_line_without_a_needed_column_is_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"asked": "q", "told": "a"}\n{"asked": "q"}\n{"asked": "r", "told": "b"}\n')
    columns = read_columns({"query": "asked", "response": "told"}, "a.jsonl")
    found = list(read_records(path, columns=columns))
    assert [type(item) for item in found] == [Record, BadLine, Record]
    assert isinstance(found[1], BadLine) and found[1].error.sample_id == f"{path}:2"
