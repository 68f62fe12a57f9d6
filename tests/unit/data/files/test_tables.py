import base64
import datetime
import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from erniekit.data.chat.conversation import ImagePart, TextPart
from erniekit.data.files.reader import BadLine, Record, read_records
from erniekit.data.formats import parse_record
from erniekit.errors import DataError
from tests.unit.data.formats.parsing import outline
from tests.unit.data.helpers import encoded, noise


def rows(path: Path, text: str) -> list[Record | BadLine]:
    path.write_text(text, encoding="utf-8", newline="")
    return list(read_records(path))


def values(found: list[Record | BadLine]) -> list[Any]:
    return [item.value for item in found if isinstance(item, Record)]


def test_rows_with_cells_over_several_lines(tmp_path: Path) -> None:
    text = 'instruction,input,output\r\nq,"a,\n""b""",x\r\n\r\n"r",, y \n'
    found = rows(tmp_path / "a.csv", text)
    assert values(found) == [
        {"instruction": "q", "input": 'a,\n"b"', "output": "x"},
        {"instruction": "r", "input": "", "output": " y "},
    ]
    assert [item.sample_id for item in found if isinstance(item, Record)] == [
        f"{tmp_path}/a.csv:2",
        f"{tmp_path}/a.csv:5",
    ]
    same = rows(tmp_path / "a.tsv", "instruction\tinput\toutput\nq\ta, b\tx\n")
    assert values(same) == [{"instruction": "q", "input": "a, b", "output": "x"}]


def test_json_in_the_columns_that_hold_lists(tmp_path: Path) -> None:
    text = (
        "query,response,history,images,chosen,rejected\n"
        '"[1]","{""a"": 1}","[[""p"", ""o""]]",,"[1, 2]",{}\n'
        'q,a,,1.png,"[{""role"": ""assistant"", ""content"": ""x""}]","[[broken"\n'
    )
    first, second = values(rows(tmp_path / "a.csv", text))
    assert first["query"] == "[1]"
    assert first["response"] == '{"a": 1}'
    assert first["history"] == [["p", "o"]]
    assert first["images"] is None
    assert first["chosen"] == "[1, 2]"
    assert first["rejected"] == "{}"
    assert second["history"] is None
    assert second["images"] == "1.png"
    assert second["chosen"] == [{"role": "assistant", "content": "x"}]
    assert second["rejected"] == "[[broken"


def test_ragged_rows_are_bad_lines(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.csv", "query,response\nq\nq,a\nq,a,b\n")
    assert [type(item) for item in found] == [BadLine, Record, BadLine]
    errors = [str(item.error) for item in found if isinstance(item, BadLine)]
    assert errors[0] == f"{tmp_path}/a.csv:2: the row has 1 cell, but the first line has 2 columns"
    assert errors[1].startswith(f"{tmp_path}/a.csv:4: the row has 3 cells")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Name a colour.,,Red.\n", "a.csv:1: the first line must name the columns"),
        ("instruction;input;output\nq;;a\n", "a.csv:1: the first line must name the columns"),
        ("query,response,query\nq,a,q\n", "a.csv:1: the first line names a column twice"),
        ('query,response\nq,"a\n', "a.csv:2: cannot read the table: unexpected end of data"),
        ('query,response\nq,a\n"q"x,a\n', "a.csv:3: cannot read the table"),
        ("query,response\n", "a.csv: the data file has no samples"),
    ],
)
def test_wrong_tables_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(tmp_path / "a.csv", text)


def test_cells_of_any_length(tmp_path: Path) -> None:
    cells = ["x" * 200_000, "y" * 3_000_000]
    (row,) = rows(tmp_path / "a.csv", f'query,response\n{cells[0]},"{cells[1]}"\n')
    assert isinstance(row, Record) and row.value == {"query": cells[0], "response": cells[1]}


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("query,response\nq,a\nq,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv:3: not UTF-8 text"):
        list(read_records(path))


def test_parquet_as_the_hub_has_it(tmp_path: Path) -> None:
    png = encoded(noise(8, 8))
    path = tmp_path / "a.parquet"
    turns = [
        {"role": "user", "content": "<image>q", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": '{"a": 1}'}]},
    ]
    table = pyarrow.Table.from_pylist(
        [
            {
                "messages": turns,
                "images": [{"bytes": png, "path": None}],
                "conversations": None,
                "when": datetime.date(2026, 11, 22),
            },
            {
                "messages": None,
                "images": None,
                "conversations": [{"from": "human", "value": "r"}],
                "when": None,
            },
        ]
    )
    pyarrow.parquet.write_table(table, path)
    first, second = (item for item in read_records(path) if isinstance(item, Record))
    assert first.sample_id == f"{path}:row 1"
    assert first.value["when"] == "2026-11-22"
    chat = parse_record(first.value, format="auto", base_dir=tmp_path, sample_id=first.sample_id)
    assert chat.messages[0].parts[0] == ImagePart(png)
    assert outline(chat.messages[1:]) == [("assistant", 'f({"a": 1})', True)]
    chat = parse_record(second.value, format="auto", base_dir=tmp_path, sample_id=second.sample_id)
    assert outline(chat.messages) == [("user", "r", False)]


def test_a_column_of_bytes_is_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    png = encoded(noise(8, 8))
    record = {"query": "<image>q", "response": "a", "image": png}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), path)
    (found,) = read_records(path)
    assert isinstance(found, Record)
    assert found.value["image"].endswith(base64.b64encode(png).decode())
    chat = parse_record(found.value, format="auto", base_dir=tmp_path, sample_id="f:1")
    assert chat.messages[0].parts[0] == ImagePart(png)


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "x" * 50}] * 300), buffer)
    data = buffer.getvalue()
    for wrong in (b"", b"text", data[:-20], data[:20] + bytes(100) + data[120:], b"PAR1" + bytes(100)):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"a\.parquet:row 1: the parquet file cannot be read: "):
            list(read_records(path))


def test_an_empty_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(DataError, match="has no samples"):
        list(read_records(path))


def test_cells_of_grounding_and_pairs(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "query,response,images,rejected_images,rejected_response,objects\n"
        '<image>?,<bbox>,"[""1.png""]","[""2.png""]",no,"{""bbox"": [[0.5, 1]], ""bbox_type"": ""norm1""}"\n'
        '<image>?,<bbox>,1.png,,,"{""bbox"": [[0.5, 1]], ""bbox_type"": ""norm1""}"\n'
    )
    pair, alone = (
        parse_record(record.value, format="auto", base_dir=tmp_path, sample_id="")
        for record in read_records(path)
        if isinstance(record, Record)
    )
    for found in (pair, alone):
        assert found.messages[1].parts == (TextPart("[500, 1000]"),)
    assert [part.source for part in pair.rejected_prompt[0].parts if isinstance(part, ImagePart)] == [
        str(tmp_path / "2.png")
    ]
    assert (alone.rejected, alone.rejected_prompt) == ((), ())
