import codecs
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from erniekit.data.files.reader import BadLine, Cursor, Record, read_records
from erniekit.errors import DataError


def records(path: Path) -> list[Record]:
    found = list(read_records(path))
    assert all(isinstance(item, Record) for item in found)
    return [item for item in found if isinstance(item, Record)]


def test_json_lines_with_bom_blank_lines_and_windows_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + '{"a": "猫"}\r\n\r\n  \n{"a": 2}'.encode())
    found = records(path)
    assert [item.value for item in found] == [{"a": "猫"}, {"a": 2}]
    assert [item.sample_id for item in found] == [f"{path}:1", f"{path}:4"]
    assert found[-1].bytes_read == path.stat().st_size


def test_a_separator_of_lines_inside_a_string_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x\u2028y\x85z"}\n{"a": 2}\n', encoding="utf-8")
    assert [item.sample_id for item in records(path)] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8])
def test_array_names_the_line_on_which_each_element_starts(tmp_path: Path, name: str, bom: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(bom + b'\n [ {"a": 1},{"a":\n2}\n,\n\n  {"a": "[,]\\n"}, 4 ]\n\n')
    found = records(path)
    assert [item.value for item in found] == [{"a": 1}, {"a": 2}, {"a": "[,]\n"}, 4]
    assert [item.sample_id for item in found] == [f"{path}:{line}" for line in (2, 2, 6, 6)]


def test_indented_array_as_json_dump_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"a": [1, 2]}, {"b": {}}], indent=2))
    lines = path.read_text().split("\n")
    for item in records(path):
        assert lines[int(item.sample_id.rsplit(":", 1)[1]) - 1].strip() == "{"


def test_bad_line_is_reported_and_reading_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 1,}\n{"a": "\xff"}\n{"a": 3}\n')
    found = list(read_records(path))
    assert [type(item) for item in found] == [Record, BadLine, BadLine, Record]
    syntax, encoding = (item.error for item in found if isinstance(item, BadLine))
    assert str(syntax).startswith(f"{path}:2: not valid JSON: ")
    assert str(encoding).startswith(f"{path}:3: not UTF-8")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[{"a": 1},\n {"a": }]', 2),
        ('[{"a": 1}\n {"a": 2}]', 2),
        ('[{"a": 1},\n]', 2),
        ('[{"a": 1},\n', 2),
        ('[{"a": 1}\n', 2),
        ('[{"a": 1}]\n\n[2]', 3),
        ("[", 1),
    ],
)
def test_syntax_error_in_an_array_names_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"a.json:{line}: not valid JSON: "):
        list(read_records(path))


@pytest.mark.parametrize("content", [b"", b"\n \n", codecs.BOM_UTF8, b"[]", b" [ \n ] "])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jsonl: the data file has no samples"):
        list(read_records(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot read the data file"):
        list(read_records(tmp_path / "none.jsonl"))


def lines(values: list[Any]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def array(values: list[Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, indent=1).encode()


def table(values: list[Any]) -> bytes:
    buffer = io.StringIO(newline="")
    rows = csv.DictWriter(buffer, ["text", "messages"])
    rows.writeheader()
    for value in values:
        rows.writerow({key: inner if key == "text" else json.dumps(inner) for key, inner in value.items()})
    return buffer.getvalue().encode()


def parquet(values: list[Any]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), buffer, row_group_size=100)
    return buffer.getvalue()


KINDS: dict[str, Callable[[list[Any]], bytes]] = {
    "a.jsonl": lines,
    "a.json": array,
    "b.jsonl": lambda values: codecs.BOM_UTF8 + array(values),
    "c.jsonl": lambda values: codecs.BOM_UTF8 + b"\n" + lines(values).replace(b"\n", b"\r\n\r\n"),
    "a.csv": table,
    "b.csv": lambda values: codecs.BOM_UTF8 + table(values),
    "a.parquet": parquet,
    "parquet.data": parquet,
    "a.jsonl.gz": lambda values: gzip.compress(lines(values)),
    "array.gz": lambda values: gzip.compress(array(values)),
    "a.csv.gz": lambda values: gzip.compress(table(values)),
}
VALUES = [
    {"text": f'{n} "猫",\n\u2028 {"x" * n}', "messages": [{"role": "user", "content": f"[{n}"}]}
    for n in range(300)
]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_holds_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name](VALUES))
    found = records(path)
    assert [item.value for item in found] == VALUES
    assert len({item.sample_id for item in found}) == len(VALUES)
    read = [item.bytes_read for item in found]
    assert read == sorted(read)
    assert read[-1] <= path.stat().st_size
    assert read[-1] >= 0.9 * path.stat().st_size


@pytest.mark.parametrize("name", KINDS)
def test_reading_goes_on_after_any_record(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name](VALUES))
    found = records(path)
    for index in (0, 1, 99, 127, 128, 200, 298):
        assert list(read_records(path, found[index].after)) == found[index + 1 :]
    assert list(read_records(path, found[-1].after)) == []
    assert list(read_records(path, Cursor())) == found


def test_reading_goes_on_after_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"a": 1}\n{"a": 1,}\n\n{"a": 3}\n')
    found = list(read_records(path))
    assert [item.after.records for item in found] == [1, 2, 3]
    (last,) = read_records(path, found[1].after)
    assert isinstance(last, Record)
    assert last == found[2]
    assert last.sample_id == f"{path}:5"


def test_text_is_one_record_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(codecs.BOM_UTF8 + ' [1]\r\n猫\n{"a": 1}\n'.encode())
    (found,) = records(path)
    assert found.value == {"text": ' [1]\r\n猫\n{"a": 1}\n'}
    assert found.sample_id == f"{path}:1"
    assert list(read_records(path, found.after)) == []


def test_what_json_cannot_hold_in_a_line_is_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": ' + "[" * 100_000 + "\n" + '{"a": ' + "9" * 5000 + "}\n" + '{"a": NaN}\n')
    deep, long, last = read_records(path)
    assert isinstance(deep, BadLine)
    assert "nested too deeply" in str(deep.error)
    assert isinstance(long, BadLine)
    assert "digits" in str(long.error)
    assert isinstance(last, Record)


@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8])
def test_objects_over_several_lines(tmp_path: Path, bom: bytes) -> None:
    path = tmp_path / "a.json"
    values = [{"messages": [{"role": "user", "content": "}\n{"}]}, {"a": {"b": [1, 2]}}, {"c": 3}]
    texts = [json.dumps(values[0], indent=2), json.dumps(values[1], indent=2), json.dumps(values[2])]
    path.write_bytes(bom + ("\n" + "\n".join(texts) + "\n").encode())
    found = records(path)
    assert [item.value for item in found] == values
    second = texts[0].count("\n") + 3
    assert [item.sample_id for item in found] == [
        f"{path}:2", f"{path}:{second}", f"{path}:{second + texts[1].count(chr(10)) + 1}"
    ]  # fmt: skip
    rest = [item.value for item in read_records(path, found[0].after) if isinstance(item, Record)]
    assert rest == values[1:]


def test_one_object_over_several_lines_is_one_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": [1, {"b": "x"}]}, indent=4))
    assert [item.value for item in records(path)] == [{"a": [1, {"b": "x"}]}]


def test_an_error_after_objects_over_several_lines_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{\n"a": 1\n}\n{\n"a": 2,\n}\n')
    with pytest.raises(DataError, match=r"a\.json:6: not valid JSON"):
        records(path)


def test_json_lines_with_a_wrong_first_line_stay_lines(tmp_path: Path) -> None:
    for first in ('{"a": 1,', '{"a": [1, 2}', '{"a": "b', "{", '{"a": 1} x'):
        path = tmp_path / "a.jsonl"
        path.write_text(first + '\n{"a": 2}\n{"a": 3}\n')
        found = list(read_records(path))
        assert isinstance(found[0], BadLine) and found[0].error.sample_id == f"{path}:1"
        assert [item.value for item in found[1:] if isinstance(item, Record)] == [{"a": 2}, {"a": 3}]
