import codecs
import json
from pathlib import Path

import pytest

from erniekit.data.formats.reader import BadLine, Record, read_records
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


def test_one_object_over_several_lines_says_what_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{\n "messages": []\n}\n')
    first = next(read_records(path))
    assert isinstance(first, BadLine)
    assert "one JSON object per line, or one JSON array" in str(first.error)


@pytest.mark.parametrize("content", [b"", b"\n \n", codecs.BOM_UTF8, b"[]", b" [ \n ] "])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jsonl: the data file has no samples"):
        list(read_records(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot read the data file"):
        list(read_records(tmp_path / "none.jsonl"))
