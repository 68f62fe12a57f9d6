import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from erniekit.data.chat.conversation import Conversation, ImagePart, SampleError, VideoPart
from erniekit.data.convert import convert, to_record
from erniekit.data.files.reader import Record, read_records
from erniekit.data.formats import detect, parse_record
from erniekit.data.media.access import PUBLIC_URLS
from erniekit.errors import DataError
from tests.unit.data.helpers import SHARED, encoded, noise, qa, write_json, write_lines
from tests.unit.data.strategies import conversations


def chats(path: Path) -> list[Conversation]:
    found = []
    for item in read_records(path):
        assert isinstance(item, Record)
        found.append(parse_record(item.value, format="auto", base_dir=path.parent, sample_id=""))
    return found


@pytest.mark.slow
@given(conversations())
@settings(max_examples=200, deadline=None)
def test_a_conversation_written_and_read_is_the_same(conversation: Conversation) -> None:
    record = json.loads(json.dumps(to_record(conversation)))
    assert detect(record) in ("messages", "text")
    assert parse_record(record, format="auto", base_dir=Path(), sample_id="f:1") == conversation


def test_every_format_becomes_messages(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        qa("<image>?", images=["1.png"]),
        {
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            "tools": '[{"name":"f"}]',
        },
        {"instruction": "q", "input": "x", "output": "a", "history": [["p", "o"]]},
        {"query": "q", "response": "a"},
        {"src": ["q"], "tgt": ["a"], "label": [0], "system": "s"},
        {"src": ["q"], "response": ["a", "b"], "sort": [0, 1]},
        {
            "text_info": [{"text": "q", "tag": "mask"}, {"text": "a", "tag": "no_mask"}],
            "video_info": [{"image_url": "1.mp4"}],
        },
        {"text": "t"},
    ]
    source = write_lines(tmp_path / "a.jsonl", records)
    output = tmp_path / "b.jsonl"
    report = convert([source], output)
    assert (report.written, report.errors, report.skipped) == (8, [], {})
    assert chats(output) == chats(source)
    formats = [detect(json.loads(line)) for line in output.read_text().splitlines()]
    assert formats == ["messages"] * 7 + ["text"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_paths_are_as_seen_from_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    png = encoded(noise(8, 8))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/1.png").write_bytes(png)
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "out").symlink_to("real/deep")
    content = [
        {"type": "image", "image": "1.png"},
        {"type": "video", "video": ["1.png", "absent.png"]},
        {"type": "image", "image": {"bytes": "AAAA"}},
        {"type": "image", "image": "https://x/y.png"},
    ]
    write_lines(Path("data/a.jsonl"), [qa(content)])
    convert([Path("data/a.jsonl")], Path("out/new/b.jsonl"), access=PUBLIC_URLS)
    written = json.loads(Path("out/new/b.jsonl").read_text())["messages"][0]["content"]
    image, video, inside, url = written
    assert image["image"] == "../../../data/1.png"
    assert video["video"] == ["../../../data/1.png", "../../../data/absent.png"]
    assert inside["image"] == "data:application/octet-stream;base64,AAAA"
    assert url["image"] == "https://x/y.png"
    base = Path("out/new")
    found = parse_record(
        {"messages": [{"role": "user", "content": written}]},
        format="auto",
        base_dir=base,
        sample_id="f:1",
        access=PUBLIC_URLS,
    )
    one, two, three, four = found.messages[0].parts
    assert isinstance(one, ImagePart)
    assert isinstance(two, VideoPart)
    assert isinstance(one.source, str)
    assert Path(one.source).read_bytes() == png
    assert two.source[0] == one.source
    assert (three, four) == (ImagePart(b"\0\0\0"), ImagePart("https://x/y.png"))


def test_wrong_samples_stop_or_are_skipped(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(
        json.dumps(qa("q")) + "\n{\n" + json.dumps(qa("q", "")) + "\n" + json.dumps({"x": 1}) + "\n"
    )
    output = tmp_path / "b.jsonl"
    output.write_text("kept")
    with pytest.raises(SampleError, match=r"a\.jsonl:2"):
        convert([source], output)
    assert output.read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]
    report = convert([source, source], output, on_error="skip")
    assert report.written == 2
    assert report.skipped == {"invalid JSON": 2, "bad record": 2, "unknown format": 2}
    assert [error.sample_id for error in report.errors[:3]] == [f"{source}:{line}" for line in (2, 3, 4)]


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    source = write_json(tmp_path / "a.json", [qa("q")])
    (tmp_path / "same.json").symlink_to(source)
    with pytest.raises(DataError, match="this is one of the input files"):
        convert([source], tmp_path / "same.json")
    with pytest.raises(DataError, match='cannot convert to format "alpaca"'):
        convert([source], tmp_path / "b.jsonl", to="alpaca")
    with pytest.raises(DataError, match=r"a\.json/b\.jsonl: cannot be written"):
        convert([source], source / "b.jsonl")
    with pytest.raises(DataError, match="unknown sample format"):
        convert([source], tmp_path / "b.jsonl", format="alpaca")
    with pytest.raises(DataError, match="cannot read the data file"):
        convert([tmp_path / "none.jsonl"], tmp_path / "b.jsonl")


TESTDATA = SHARED / "testdata"


@pytest.mark.skipif(not TESTDATA.is_dir(), reason="no ../shared/testdata beside this clone")
@pytest.mark.parametrize("name", ["glaive_toolcall_en_demo", "dpo_en_demo", "mllm_demo", "mllm_video_demo"])
def test_real_data_stays_the_same(tmp_path: Path, name: str) -> None:
    source, output = TESTDATA / f"{name}.json", tmp_path / "b.jsonl"
    convert([source], output)
    for before, after in zip(chats(source), chats(output), strict=True):
        assert (after.tools, after.rejected, len(after.messages)) == (
            before.tools,
            before.rejected,
            len(before.messages),
        )
        assert [message.trained for message in after.messages] == [
            message.trained for message in before.messages
        ]
        for one, other in zip(before.messages, after.messages, strict=True):
            assert [type(part) for part in one.parts] == [type(part) for part in other.parts]
