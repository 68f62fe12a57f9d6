"""Whatever a data file holds, it is read, or there is a SampleError or DataError that says where: nothing else."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.config.choices import FORMATS
from erniekit.data.chat.conversation import Conversation, SampleError
from erniekit.data.convert import to_record
from erniekit.data.files.reader import BadLine, read_records
from erniekit.data.formats import detect, parse_record
from erniekit.data.media.access import PUBLIC_URLS
from erniekit.errors import DataError
from tests.unit.data.helpers import qa
from tests.unit.data.strategies import JSON, conversations, mutated

pytestmark = pytest.mark.slow

GOOD = json.dumps(qa("q"))
DEEP = "[" * 100_000
ASKED = {"role": "user", "content": "q"}


def answered(**keys: Any) -> dict[str, Any]:
    return {"messages": [ASKED, {"role": "assistant", "content": "a", **keys}]}


def info(*entries: Any, **keys: Any) -> dict[str, Any]:
    texts = [{"text": "q", "tag": "mask"}, {"text": "a", "tag": "no_mask"}]
    return {"text_info": list(entries) or texts, **keys}


def shared(*values: Any, **keys: Any) -> dict[str, Any]:
    names = ("human", "gpt", "human", "gpt")
    return {"conversations": [{"from": n, "value": v} for n, v in zip(names, values, strict=False)], **keys}


# (what the file is called, its bytes, the line of the error or 0 for the file as a whole, a part of the message)
FILES: list[tuple[str, bytes, int, str]] = [
    ("utf16.jsonl", GOOD.encode("utf-16"), 1, "in UTF-16: save it as UTF-8"),
    ("utf16_without_mark.jsonl", GOOD.encode("utf-16-le"), 1, "zero bytes"),
    ("utf16.csv", "query,response\nq,a\n".encode("utf-16"), 1, "in UTF-16"),
    ("latin1.json", '[{"text": "a"},\n{"text": "é"}]'.encode("latin-1"), 2, "not UTF-8 text"),
    ("latin1.txt", "a\né".encode("latin-1"), 2, "not UTF-8 text"),
    ("latin1.csv", "query,response\nq,é\n".encode("latin-1"), 2, "not UTF-8 text"),
    ("program.jsonl", b"\x7fELF\x02\x01\x01\0\0\0", 1, "zero bytes"),
    ("empty.jsonl", b"", 0, "has no samples"),
    ("empty.txt", b" \n", 0, "has no samples"),
    ("mark.jsonl", codecs.BOM_UTF8, 0, "has no samples"),
    ("blank.jsonl", b"\n \r\n\t\n", 0, "has no samples"),
    ("none.json", b"[\n]\n", 0, "has no samples"),
    ("trailing.json", f"[{GOOD},\n]".encode(), 2, "not valid JSON"),
    ("missing_comma.json", f"[{GOOD}\n{GOOD}]".encode(), 2, "expected ',' or ']'"),
    ("cut_off.json", f"[{GOOD},\n{GOOD[:-9]}".encode(), 2, "not valid JSON"),
    ("two_arrays.json", f"[{GOOD}]\n[{GOOD}]".encode(), 2, "more text after the end"),
    ("deep.json", DEEP.encode(), 1, "nested too deeply"),
    ("no_header.csv", b"q,a\n", 1, "must name the columns"),
    ("only_header.csv", b"query,response\n", 0, "has no samples"),
    ("open_quote.csv", b'query,response\nq,"a\n', 2, "unexpected end of data"),
    ("broken.parquet", b"PAR1 and no more", 0, "the parquet file cannot be read"),
    ("parquet_by_name.parquet", GOOD.encode(), 0, "the parquet file cannot be read"),
    ("cut_off.jsonl.gz", gzip.compress(GOOD.encode() * 99)[:-9], 0, "damaged or cut off"),
    ("damaged.jsonl.gz", gzip.compress(b"")[:10] + b"\xff" * 40, 0, "damaged or cut off"),
    ("not_gzip.jsonl.gz", b"\x1f\x8b and no more", 0, "cannot read the data file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "line", "message"), FILES, ids=[file[0] for file in FILES])
def test_malformed_files(tmp_path: Path, name: str, content: bytes, line: int, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:{line}: " if line else f"{path}:")


# (the second of three lines, a part of the message)
LINES: list[tuple[bytes, str]] = [
    (b'{"text": "a",}', "not valid JSON"),
    (b'{"text": "a"', "not valid JSON"),
    (b'{"text": "a"} {}', "Extra data"),
    (b"{'text': 'a'}", "not valid JSON"),
    (b'{"text": "\xe9"}', "not UTF-8 text"),
    (b'{"text": "a\tb"}', "Invalid control character"),
    (b'{"text": "\\x"}', "Invalid \\escape"),
    (b'{"text": ' + DEEP.encode(), "nested too deeply"),
    (b'{"n": ' + b"9" * 5000 + b"}", "digits"),
    (b"text", "not valid JSON"),
    (codecs.BOM_UTF8 + b"{}", "not valid JSON"),
]


@pytest.mark.parametrize(("line", "message"), LINES)
def test_malformed_lines_leave_their_neighbours(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + line + b"\n" + GOOD.encode())
    first, bad, last = read_records(path)
    assert isinstance(bad, BadLine)
    assert message in str(bad.error)
    assert str(bad.error).startswith(f"{path}:2: ")
    assert bad.error.reason == "invalid JSON"
    assert not isinstance(first, BadLine)
    assert not isinstance(last, BadLine)


# (a record, the reason, a part of the message)
RECORDS: list[tuple[Any, str, str]] = [
    (None, "bad record", "must be a JSON object, this is null"),
    (3, "bad record", "this is a number"),
    (float("nan"), "bad record", "this is a number"),
    ("text", "bad record", "this is a string"),
    ([qa("q")], "bad record", "this is an array"),
    ({}, "unknown format", "found: none"),
    ({"inputs": "q", "targets": "a"}, "unknown format", 'found: "inputs", "targets"'),
    ({"\ud800": 1}, "unknown format", r'found: "\ud800"'),
    ({"messages": None}, "bad record", '"messages" must be a list'),
    ({"messages": []}, "bad record", "not an empty array"),
    ({"messages": {}}, "bad record", "not an object"),
    ({"messages": "[{}]"}, "bad record", "not a string"),
    ({"messages": [None]}, "bad record", "message 1 must be an object"),
    ({"messages": [ASKED, 3]}, "bad record", "message 2 must be an object"),
    ({"messages": [{"role": "user", "content": None}]}, "bad record", "not null"),
    ({"messages": [{"role": "user", "content": 3}]}, "bad record", "not a number"),
    ({"messages": [{"role": "user", "content": {"text": "q"}}]}, "bad record", "not an object"),
    ({"messages": [{"role": "user", "content": ["q"]}]}, "bad record", "part 1: type must be"),
    ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "bad record", "'sound'"),
    ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "bad record", "type must be"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, "bad record", '"text" must be'),
    ({"messages": [{"role": "teacher", "content": "q"}]}, "unknown role", "'teacher'"),
    ({"messages": [{"role": ["user"], "content": "q"}]}, "unknown role", "['user']"),
    ({"messages": [{"content": "q"}]}, "unknown role", "no role"),
    ({"messages": [ASKED, {"role": "system", "content": "s"}]}, "bad record", "can only be the first"),
    (answered(content=""), "bad record", "answer is empty"),
    (answered(content=None), "bad record", "not null"),
    (answered(loss="no"), "bad record", '"loss" must be'),
    (answered(weight=[1]), "bad record", '"weight" must be'),
    (answered(reasoning_content=["x"]), "bad record", '"reasoning_content" must be'),
    (qa("<image>"), "images do not match", "1 <image> mark in"),
    (qa("<image>", images=["1.png", "2.png"]), "images do not match", "2 images in"),
    (qa("<image><image>", images=["1.png"]), "images do not match", "2 <image> marks in"),
    (qa("q", videos=["1.mp4"]), "videos do not match", "1 video in"),
    (qa("<image>", images=[None]), "bad record", '"images", image 1'),
    (qa("<image>", images=[3]), "bad record", '"images", image 1'),
    (qa("<image>", images=[""]), "bad record", '"images", image 1'),
    (qa("<image>", images=7), "bad record", '"images" must be a list'),
    (qa("<image>", images=[{"bytes": "?"}]), "bad image", '"images", image 1'),
    (qa("<image>", images=["http://x/1.png"]), "not supported", "allow_urls"),
    (qa("<video>", videos=[[]]), "bad record", '"videos", video 1'),
    (qa("<video>", videos=[["1.png", None]]), "bad record", '"videos", video 1, frame 2'),
    (answered(tool_calls=[{"name": "f", "arguments": "{"}]), "bad tool call", "message 2, tool call 1"),
    (answered(tool_calls=[{"name": "f", "arguments": "[]"}]), "bad tool call", "must be a JSON object"),
    (answered(tool_calls=[{"arguments": {}}]), "bad tool call", "has no name"),
    (answered(tool_calls="f()"), "bad tool call", "not valid JSON"),
    (answered(tool_calls=7), "bad tool call", "must be a list"),
    (qa("q", tools="[{"), "bad tools", "not valid JSON"),
    (qa("q", tools=7), "bad tools", "must be a list"),
    (qa("q", tools=[{"type": "function"}]), "bad tools", "have a name"),
    ({"messages": [ASKED, {"role": "tool", "content": 3}]}, "bad record", "message 2 (tool): content must be"),
    ({"conversations": [{"from": "human"}]}, "bad record", '"value" must be a string'),
    ({"conversations": [{"from": "bard", "value": "a"}]}, "unknown role", "'bard'"),
    ({"conversations": [{"value": "a"}]}, "unknown role", 'no "from"'),
    (shared("q", None), "bad record", 'message 2 (gpt): "value" must be'),
    (shared("q", "a", images=["1.png"]), "images do not match", "0 <image> marks in"),
    (shared("q", chosen={"from": "gpt", "value": "a"}), "bad record", '"chosen" without "rejected"'),
    (shared("q", rejected={"from": "gpt", "value": "a"}), "bad record", '"rejected" without "chosen"'),
    (shared("q", chosen="a", rejected=""), "bad record", "answer is empty"),
    (shared("q", "a", chosen="a", rejected="b"), "bad record", "must be a user's or a tool's"),
    ({"instruction": "q", "output": None}, "bad record", '"output" must be a string'),
    ({"instruction": "q", "output": 7}, "bad record", '"output" must be a string'),
    ({"instruction": ["q"], "output": "a"}, "bad record", '"instruction" must be a string'),
    ({"instruction": "q", "output": "a", "history": [["x"]]}, "bad record", '"history", turn 1'),
    ({"instruction": "q", "output": "a", "history": {"x": "y"}}, "bad record", '"history" must be a list'),
    ({"query": "q", "response": 7}, "bad record", '"response" must be a string'),
    ({"prompt": "q", "completion": "a", "label": False}, "not supported", "KTO"),
    ({"src": ["q", "r"], "tgt": ["a"]}, "bad record", '"src" has 2 texts and "tgt" 1'),
    ({"src": [], "tgt": []}, "bad record", "no messages"),
    ({"src": ["q"], "tgt": ["a"], "label": [1, 0]}, "bad record", '"label" must be a list of 1'),
    ({"src": ["q"], "tgt": ["a"], "is_system": "x"}, "bad record", '"is_system" must be 0 or 1'),
    ({"src": ["q"], "response": [["a"], ["b"]], "sort": [2, 2]}, "bad record", "must differ"),
    ({"src": ["q"], "response": [["a"]], "sort": [1, 2]}, "bad record", "two candidates, here is 1"),
    ({"src": ["q"], "response": [["a"], ["b", "r"]], "sort": [1, 2]}, "bad record", "response[1]"),
    ({"text_info": []}, "bad record", "at least one text"),
    (info({"text": "q", "tag": "no_mask"}), "bad record", "tags must alternate"),
    (info({"text": 7, "tag": "mask"}), "bad record", 'text_info[0]: "text" must be a string'),
    (info(is_system=[1]), "bad record", '"is_system" must be 0 or 1'),
    (info(image_info=[{"image_url": "1.png", "matched_text_index": 2}]), "bad record", "must be 0 to 1"),
    (info(image_info=[{"image_url": "1.png", "matched_text_index": 1}]), "bad record", "not a user's text"),
    (info(order={"type": ["text", "text", "text"], "index": [0, 1, 2]}), "bad record", "there is no text 2"),
    (info(order={"type": ["text"], "index": [0]}), "bad record", '"order" names 1'),
    (info(order="x"), "bad record", '"order" must have two lists'),
    ({"tgt": []}, "bad record", "the text is empty"),
    ({"text": ""}, "bad record", "the text is empty"),
    ({"text": ["x"]}, "bad record", '"text" must be a string'),
    ({"text": "half \udc00"}, "bad record", "half a surrogate pair"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "reason", "message"), RECORDS)
def test_malformed_records(tmp_path: Path, record: Any, reason: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD + "\n\n" + json.dumps(record) + "\n")
    _, found = read_records(path)
    assert not isinstance(found, BadLine)
    with pytest.raises(SampleError) as caught:
        parse_record(found.value, format="auto", base_dir=tmp_path, sample_id=found.sample_id)
    assert caught.value.reason == reason
    assert message in caught.value.detail
    assert str(caught.value).startswith(f"{path}:3: ")
    str(caught.value).encode()  # can be printed


def test_there_are_enough_kinds() -> None:
    assert len(FILES) + len(LINES) + len(RECORDS) > 100


VALID: list[dict[str, Any]] = [
    qa(
        [{"type": "text", "text": "q"}, {"type": "image", "image": "1.png"}],
        system="s",
        tools=[{"name": "f"}],
    ),
    qa("<image><video>", images=["1.png"], videos=[["1.png", "2.png"]]),
    {
        **answered(tool_calls=[{"function": {"name": "f", "arguments": "{}"}}], reasoning_content="r"),
        "label": [1],
    },
    {"messages": [ASKED], "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]},
    {"messages": [ASKED, {"role": "assistant", "content": "a"}], "rejected_messages": qa("q")["messages"]},
    shared("<image>q", "a", images="1.png", tools='[{"name": "f"}]'),
    shared("q", chosen={"from": "gpt", "value": "a"}, rejected={"from": "gpt", "value": "b"}),
    {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        ]
    },
    {"instruction": "q", "input": "i", "output": "a", "history": [["p", "o"]], "system": "s"},
    {"prompt": [ASKED], "completion": [{"role": "assistant", "content": "a"}]},
    {"query": "q", "response": "a", "rejected_response": "b"},
    {"src": ["s", "q"], "tgt": ["", "a"], "label": [0, 1], "is_system": 1},
    {"src": ["q"], "tgt": [], "response": [["a", "r", "c"], ["b"]], "sort": [1, 0]},
    info(image_info=[{"image_url": "1.png", "image_type": "video", "video_uid": "v"}], is_system=0),
    info(
        image_info=[{"image_url": "1.png"}],
        video_info=[{"image_url": "1.mp4"}],
        order={"type": ["image", "video", "text", "text"], "index": [0, 0, 0, 1]},
    ),
    info(
        {"text": "q", "tag": "mask"},
        {"text": "", "tag": "no_mask", "tool_calls": [{"name": "f"}]},
        {"text": {"x": 1}, "tag": "mask", "tool_response": 1},
    ),
    {"tgt": ["x"]},
    {"text": "x"},
]


def test_the_records_to_be_mutated_are_valid() -> None:
    for record in VALID:
        parse_record(record, format="auto", base_dir=Path(), sample_id="f:1")


def accepts_or_says_why(record: Any, format: str) -> None:
    try:
        found = parse_record(
            record, format=format, base_dir=Path("/data"), sample_id="f:1", access=PUBLIC_URLS
        )
    except SampleError as error:
        assert str(error).startswith("f:1: ")
        assert len(error.reason.split()) <= 5
        str(error).encode()
    else:
        assert isinstance(found, Conversation)
        assert found.messages
        json.dumps(to_record(found)).encode()


@given(JSON, st.sampled_from(["auto", *FORMATS]))
@settings(max_examples=300, deadline=None)
def test_any_json_value(record: Any, format: str) -> None:
    accepts_or_says_why(record, format)


@given(st.data())
@settings(max_examples=600, deadline=None)
def test_valid_records_with_one_thing_wrong(data: st.DataObject) -> None:
    record = mutated(data.draw, data.draw(st.sampled_from(VALID)))
    accepts_or_says_why(record, "auto")
    named = detect(record)
    if named is not None:
        accepts_or_says_why(record, named)


@given(st.data(), conversations())
@settings(max_examples=200, deadline=None)
def test_written_records_with_one_thing_wrong(data: st.DataObject, conversation: Conversation) -> None:
    accepts_or_says_why(mutated(data.draw, to_record(conversation)), "auto")


@given(st.binary(max_size=80) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.txt", "a.jsonl.gz"])
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / name
    for start in (b"", b"[", b"PAR1", b"query,response\n", b'{"a": ', b"\x1f\x8b"):
        path.write_bytes(start + content)
        try:
            for item in read_records(path):
                if isinstance(item, BadLine):
                    assert str(item.error).startswith(f"{path}:")
        except DataError as error:
            assert str(error).startswith(f"{path}:")
