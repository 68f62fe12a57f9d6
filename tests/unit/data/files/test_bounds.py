"""Data files that would take all memory or time, or never end: bombs, endless lines, pipes."""

from __future__ import annotations

import gzip
import json
import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from erniekit import local_files
from erniekit.data.chat.conversation import SampleError
from erniekit.data.files import arrow, json_values, reader, records
from erniekit.data.files.parquet_pages import ColumnPages, read_pages
from erniekit.data.files.reader import Record, read_records
from erniekit.data.formats import parse_record
from erniekit.data.load.stream import files_digest
from erniekit.data.store.digests import content_digests
from erniekit.errors import DataError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of kilobytes."""
    for module in (records, json_values):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 1 << 21)
    monkeypatch.setattr(records, "_MANY_BYTES", 1000)
    monkeypatch.setattr(records, "_MAX_VALUES", 1000)
    monkeypatch.setattr(local_files, "_JSON_VALUES", 500)
    for module in (records, arrow):
        monkeypatch.setattr(module, "MAX_EMPTY_LINES", 1000)
    monkeypatch.setattr(reader, "MAX_TEXT_BYTES", 1000)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "' + b"x" * (1 << 22), "1: the record has more than 2 MiB"),
        ("a.jsonl", b'{"text": "a"}\n' + b"x" * (1 << 22), "2: the record has more than 2 MiB"),
        ("a.jsonl", b'{"text": "a"}\n' + b" \n" * 2000, "1002: 1,000 empty lines in a row"),
        ("a.csv", b"text,a\n" + b"x" * (1 << 22), "2: the record has more than 2 MiB"),
        ("a.csv", b"text,a\n" + b"\r\n" * 2000, "1002: 1,000 empty lines in a row"),
        (
            "a.jsonl",
            b'{"text": [' + b"[]," * 2000 + b"[]]}\n",
            "1: the record has more than 1,000 values",
        ),
        ("a.csv", b"text,a\n" + b"," * 2000, "2: the record has more than 1,000 values"),
        ("a.csv", b"," * 2000, "1: the record has more than 1,000 values"),
        ("a.csv", b'text,a\n"' + b"x\n" * (1 << 20), r"\d+: the record has more than 2 MiB"),
        ("a.csv", b"text,a\n" + b'"x\n",' * 2000, r"\d+: the record has more than 1,000 values"),
        ("a.json", b'[{"text": "' + b"x" * (1 << 23), "1: the record has more than 2 MiB"),
        ("a.json", b'[{"text": [' + b"[]," * (1 << 19), "1: the record has more than 1,000 values"),
        ("a.json", b"[\n" + b" \n" * (1 << 21), r"\d+: [\d,]+ spaces in a row"),
        ("a.txt", b"x" * 2000, "has more than 0 MiB, the limit for one text"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_records_without_end(
    tmp_path: Path, small: None, name: str, content: bytes, message: str, packed: bool
) -> None:
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=message):
        list(read_records(path))


def test_values_after_a_long_text(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window doubles: its new half is checked before it is parsed."""
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"text": "' + b"x" * (1 << 20) + b'", "a": [' + b"[]," * 2000 + b"[]]}]")
    decoded: list[int] = []
    decoder = json.JSONDecoder()

    def raw_decode(text: str, start: int) -> tuple[Any, int]:
        decoded.append(len(text))
        return decoder.raw_decode(text, start)

    monkeypatch.setattr(json_values, "_DECODER", SimpleNamespace(raw_decode=raw_decode))
    with pytest.raises(DataError, match="the record has more than 1,000 values"):
        list(read_records(path))
    assert max(decoded) <= 1 << 20


@pytest.mark.parametrize(
    "record",
    [
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": '
        '[{"function": {"name": "t", "arguments": JSON}}]}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": JSON}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "objects": JSON}',
    ],
)
def test_json_text_of_many_values_in_a_record(tmp_path: Path, small: None, record: str) -> None:
    """A parquet file of a kilobyte may repeat it: it has no commas to count."""
    value = json.loads(record.replace("JSON", json.dumps('{"a": [' + "[]," * 900 + "[]]}")))
    with pytest.raises(SampleError, match="not valid JSON: more than 500 values"):
        parse_record(value, format="auto", base_dir=tmp_path, sample_id="f:1")


def test_a_cell_of_many_values_stays_text(tmp_path: Path, small: None) -> None:
    path = tmp_path / "a.csv"
    cell = "[" + "[]," * 900 + "[]]"
    path.write_text(f'messages\n"{cell}"\n')
    (record,) = read_records(path)
    assert isinstance(record, Record) and record.value == {"messages": cell}


@pytest.mark.parametrize("depth", [300, 700])
@pytest.mark.parametrize("inner", ["[]", '{"a": }'])
def test_deep_values_of_a_record(tmp_path: Path, depth: int, inner: str) -> None:
    begin, end = inner[:-1], inner[-1]
    value = begin * depth + "1" + end * depth
    tool = f'{{"type": "function", "function": {{"name": "t", "parameters": {value}}}}}'
    path = tmp_path / "a.jsonl"
    path.write_text(
        f'{{"query": "a", "answers": [{{"name": "t", "arguments": {{"q": {value}}}}}], "tools": [{tool}]}}'
    )
    (record,) = read_records(path)
    assert isinstance(record, Record)
    with suppress(SampleError):  # the depth that is accepted depends on the stack
        parse_record(record.value, format="auto", base_dir=tmp_path, sample_id="f:1")


def test_rows_without_values(tmp_path: Path, small: None) -> None:
    """A batch of nulls has any number of rows in a hundred bytes."""
    path = tmp_path / "a.arrow"
    write_arrow(path, pa.table({"text": pa.nulls(1 << 30)}))
    with pytest.raises(
        DataError, match="row 1002: the Arrow file cannot be read: 1,000 rows without a value"
    ):
        list(read_records(path))


def test_columns_with_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    write_arrow(tmp_path / "a.arrow", table)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.arrow", "a.parquet"):
        with pytest.raises(DataError, match="two columns have the same name"):
            list(read_records(tmp_path / name))


def write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def test_a_text_with_many_commas_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a, " * 100_000}) + "\n")
    assert len(list(read_records(path))) == 1


def test_a_list_that_is_repeated_in_a_parquet_file(tmp_path: Path) -> None:
    """A kilobyte that says five million numbers."""
    path, number = tmp_path / "a.parquet", 5_000_000
    values = pa.ListArray.from_arrays(pa.array([0, number], pa.int32()), pa.array(np.zeros(number, np.int8)))
    pyarrow.parquet.write_table(pa.table({"text": ["x"], "a": values}), path)
    assert path.stat().st_size < 2000
    with pytest.raises(DataError, match=r"row 1: .*a row group of 1 rows has 5,000,000 values in a column"):
        list(read_records(path))


def test_a_text_that_is_repeated_in_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, text = tmp_path / "a.parquet", "x" * 100_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([text]))
    pyarrow.parquet.write_table(pa.table({"text": texts}), path)
    assert [record.value["text"] for record in read_records(path)] == [text] * 300  # type: ignore[union-attr]
    pages = [column_pages(path)]
    for limit, rows in ((1 << 30, 128), (1_001_000, 10), (10, 1)):
        monkeypatch.setattr(arrow, "_BATCH_BYTES", limit)
        assert arrow._batch_rows(300, pages) == rows
    monkeypatch.setattr(arrow, "_SMALL_BYTES", 1000)
    assert len(list(read_records(path))) == 300
    monkeypatch.setattr(arrow, "MAX_RECORD_BYTES", 99_999)
    with pytest.raises(DataError, match=r"row 1: .*the row has 100,00\d bytes"):
        list(read_records(path))


def column_pages(path: Path, column: int = 0) -> ColumnPages:
    with path.open("rb") as file:
        return read_pages(file, pyarrow.parquet.read_metadata(path).row_group(0).column(column))


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "version 1": {"version": "1.0", "compression": "gzip"},
    "page version 2": {"data_page_version": "2.0", "compression": "zstd"},
    "prefixes": {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    "many pages": {"data_page_size": 500, "write_batch_size": 50},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_pages_of_a_column(tmp_path: Path, options: dict[str, Any]) -> None:
    path, texts = tmp_path / "a.parquet", [f"text {number % 70}" for number in range(2000)]
    lists = [[{"a": text}] * (number % 4) for number, text in enumerate(texts)]
    table = pa.table({"text": texts, "lists": lists, "number": [0.5] * 2000})
    pyarrow.parquet.write_table(table, path, **options)
    group = pyarrow.parquet.read_metadata(path).row_group(0)
    for index in range(3):
        assert column_pages(path, index).values == group.column(index).num_values
    found = column_pages(path)
    assert found.page < group.column(0).total_uncompressed_size
    assert (found.indices, found.prefixed) == ((0, 2000) if "use_dictionary" in options else (2000, 0))
    assert [record.value for record in read_records(path)] == table.to_pylist()  # type: ignore[union-attr]


def varint(value: int, length: int) -> bytes:
    """A number as Thrift writes it, in more bytes than it needs."""
    groups = [(2 * value >> 7 * place) & 0x7F for place in range(length)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def test_a_footer_that_states_small_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a dictionary comes from its page, as the memory for it does."""
    path, text = tmp_path / "a.parquet", "x" * 1_000_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([text]))
    pyarrow.parquet.write_table(pa.table({"text": texts}), path, write_statistics=False)
    column = pyarrow.parquet.read_metadata(path).row_group(0).column(0)
    stated, content = varint(column.total_uncompressed_size, 3), path.read_bytes()
    assert stated in content
    path.unlink()
    path.write_bytes(content.replace(stated, varint(1, 3)))
    assert pyarrow.parquet.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 1
    monkeypatch.setattr(arrow, "_BATCH_BYTES", 10_001_000)
    assert arrow._batch_rows(300, [column_pages(path)]) == 10
    monkeypatch.setattr(arrow, "_MAX_PAGE_BYTES", 1_000_000)
    with pytest.raises(DataError, match=r"row 1: .*the pages of a row group need 1,000,\d+ bytes at a time"):
        list(read_records(path))


def test_a_list_that_repeats_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 KB that say 20 GB: as indices they are small, and refused before they are texts."""
    path, text, number = tmp_path / "a.parquet", "x" * 10_000, 2_000_000
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(number, np.int32)), pa.array([text]))
    lists = pa.ListArray.from_arrays(pa.array([0, number], pa.int32()), texts)
    pyarrow.parquet.write_table(pa.table({"text": lists}), path)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match=r"row 1: .*the row has 20,016,000,000 bytes and 2,000,002 values"):
        list(read_records(path))
    few = pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), texts[:3])
    pyarrow.parquet.write_table(pa.table({"text": few}), path)
    monkeypatch.setattr(arrow, "_MAX_PAGE_BYTES", 25_000)
    assert [record.value for record in read_records(path)] == [{"text": [text] * 2}, {"text": [text]}]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content", [b"", b"\x15", b"\xff" * 40, b"\x1c" * 40, b"\x19\xfc" + b"\xff" * 20, b"\x15\x01\x00"]
)
def test_page_headers_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    column = SimpleNamespace(
        data_page_offset=0, has_dictionary_page=False, total_compressed_size=100, num_values=3
    )
    with path.open("rb") as file, pytest.raises(ValueError, match="page"):
        read_pages(file, column)


def test_damaged_metadata_of_a_parquet_file_do_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["a" * 9, "b"]}), path)
    content = path.read_bytes()
    for place in range(len(content) - 200, len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.unlink()
            path.write_bytes(damaged)
            with suppress(DataError):
                list(read_records(path))


@pytest.mark.parametrize(
    ("column", "size", "values"),
    [
        (pa.array(["ab", "c"]), 3 + 8, 2),
        (pa.array([[1, 2], [3]], pa.list_(pa.int64())), 24, 5),
        (pa.array([{"a": 1}, {"a": 2}], pa.struct({"a": pa.int64()})), 16, 4),
        (pa.array([[("a", 1)], [("b", 2), ("c", 3)]], pa.map_(pa.string(), pa.int64()))[1:], 2 + 16, 5),
        (pa.array(["abc", "abc"]).dictionary_encode(), 2 * (3 + 4), 2),
        (pa.array(["a" * 50] * 2, pa.string_view()), None, 2),
        (pa.RunEndEncodedArray.from_arrays(pa.array([100], pa.int32()), pa.array([7])), 800, 200),
    ],
)
def test_the_size_of_rows(column: pa.Array, size: int | None, values: int) -> None:
    found = arrow._size_of(column)
    assert found[1] == values and found[0] >= (size or 100)


def test_an_arrow_file_with_offsets_beyond_its_buffers(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    table = pa.table({"text": ["ab", "cd"]})
    write_arrow(path, table)
    content = path.read_bytes()
    offsets = np.array([0, 2, 4], np.int32).tobytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, np.array([0, 2, 1 << 30], np.int32).tobytes()))
    with pytest.raises(DataError, match="the Arrow file cannot be read"):
        list(read_records(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.arrow", "a.txt", "a.json.gz"])
def test_pipes_are_not_waited_for(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    for read in (
        lambda: list(read_records(path)),
        lambda: files_digest([path]),
        lambda: content_digests([path], tmp_path / "digests"),
    ):
        with pytest.raises(DataError, match="cannot read the data file: it is a pipe or a device"):
            read()
