"""Arrays over a window that is smaller than their elements."""

import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erniekit.data.files import json_values
from erniekit.data.files.records import Cursor, Record, Stream
from erniekit.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def read(data: bytes, after: Cursor = Cursor()) -> Iterator[Record]:  # noqa: B008
    file = io.BytesIO(data)
    return json_values.read_array(Path("a.json"), Stream(file, file), after)


@given(
    st.lists(VALUES, max_size=5),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_array_in_any_window(
    monkeypatch: pytest.MonkeyPatch, values: list[Any], chunk: int, indent: int | None, ascii: bool
) -> None:
    monkeypatch.setattr(json_values, "_CHUNK", chunk)
    text = json.dumps(values, indent=indent, ensure_ascii=ascii)
    found = list(read(text.encode("utf-8", "surrogatepass")))
    assert [record.value for record in found] == values
    if indent:
        starts = [
            line for line, content in enumerate(text.split("\n"), 1) if content[:1] == " " != content[1:2]
        ]
        starts = [line for line in starts if text.split("\n")[line - 1].strip()[0] not in "]}"]
        assert [int(record.sample_id.split(":")[1]) for record in found] == starts
    for record in found:
        rest = list(read(text.encode(), record.after))
        assert rest == found[record.after.records :]


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"a": 1},\n {"a": }]', "2: .*column 8"),
        ('[{"a": 1}\n {"a": 2}]', "2: .*column 2"),
        ('[{"a": 1},\n]', "2: "),
        ('[{"a": 1},\n', "2: "),
        ('[{"a": 1}\n', "2: "),
        ('[{"a": 1},\n\n {"a": "unclosed}]', "3: .*Unterminated string.*column 8"),
        ('[{"a": "\\x"}]', r"1: .*Invalid \\escape"),
        ('[{"a": "\\ud8"}]', "1: .*Invalid"),
        ("[tru]", "1: "),
        ("[1, 2.5e, 3]", "1: .*column 8"),
        ('[{"a": 1}]\n\n[2]', "3: .*more text"),
        ("[" * 100_000, "1: .*nested too deeply"),
        ("[" + "9" * 5000 + "]", "1: .*digits"),
    ],
)
def test_errors_name_their_line_in_any_window(
    monkeypatch: pytest.MonkeyPatch, text: str, place: str, chunk: int
) -> None:
    if len(text) > 1000 and chunk < 1000:
        chunk *= 1000
    monkeypatch.setattr(json_values, "_CHUNK", chunk)
    with pytest.raises(DataError, match=f"^a.json:{place}"):
        list(read(text.encode()))


def test_wrong_bytes_name_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for chunk in (1, 5, 1 << 20):
        monkeypatch.setattr(json_values, "_CHUNK", chunk)
        with pytest.raises(DataError, match=r"^a\.json:3: not UTF-8 text"):
            list(read('[1,\n2,\n"é"]'.encode("latin-1")))
        with pytest.raises(DataError, match=r"^a\.json:2: not UTF-8 text"):
            list(read('[1,\n"é'.encode()[:-1]))


@pytest.mark.slow
def test_a_long_array_is_not_held_in_memory() -> None:
    element = json.dumps({"text": "x" * 1000}).encode()
    data = b"[" + b",".join([element] * 40_000) + b"]"
    tracemalloc.start()
    count = sum(1 for _ in read(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_000
    assert peak < 8 << 20 < len(data)
