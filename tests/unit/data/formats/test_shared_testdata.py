"""The public demo data beside this clone is read as it is, without options."""

from collections import Counter
from pathlib import Path

import pytest

from erniekit.data.chat.conversation import Conversation
from erniekit.data.files.reader import Record, read_records
from erniekit.data.formats import detect, parse_record
from tests.unit.data.helpers import SHARED

TESTDATA = SHARED / "testdata"
pytestmark = pytest.mark.skipif(not TESTDATA.is_dir(), reason="no ../shared/testdata beside this clone")

EXPECTED: dict[str, tuple[str, dict[str, int]]] = {
    "mllm_demo": ("messages", {"samples": 6, "user": 12, "assistant": 12, "trained": 12, "ImagePart": 8}),
    "mllm_video_demo": ("messages", {"samples": 3, "user": 3, "assistant": 3, "trained": 3, "VideoPart": 3}),
    "dpo_en_demo": (
        "sharegpt",
        {"samples": 300, "system": 80, "user": 563, "assistant": 263 + 300, "rejected": 300, "trained": 600},
    ),
    "glaive_toolcall_en_demo": (
        "sharegpt",
        {
            "samples": 300, "user": 746, "assistant": 746 + 211, "tool": 211, "trained": 957,
            "ToolCallPart": 211, "with tools": 191, "tools": 219,
        },
    ),
    "alpaca_en_demo": ("alpaca", {"samples": 999, "user": 999, "assistant": 999, "trained": 999}),
    "identity": ("alpaca", {"samples": 91, "user": 91, "assistant": 91, "trained": 91}),
}  # fmt: skip


def read(path: Path, format: str) -> list[Conversation]:
    found = []
    for item in read_records(path):
        assert isinstance(item, Record)
        assert detect(item.value) == format
        found.append(parse_record(item.value, format="auto", base_dir=path.parent, sample_id=item.sample_id))
    return found


def counted(chats: list[Conversation]) -> dict[str, int]:
    counts: Counter[str] = Counter(samples=len(chats))
    for chat in chats:
        messages = (*chat.messages, *chat.rejected)
        counts.update(message.role for message in chat.messages)
        counts.update(type(part).__name__ for message in messages for part in message.parts)
        counts["trained"] += sum(message.trained for message in messages)
        counts["rejected"] += len(chat.rejected)
        counts["tools"] += len(chat.tools)
        counts["with tools"] += bool(chat.tools)
    del counts["TextPart"]
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_record_is_read(name: str) -> None:
    format, expected = EXPECTED[name]
    assert counted(read(TESTDATA / f"{name}.json", format)) == expected


def test_every_file_has_been_named() -> None:
    assert {path.stem for path in TESTDATA.glob("*.json")} == set(EXPECTED)


def test_placeholders_are_text() -> None:
    texts = [str(chat.messages) for chat in read(TESTDATA / "identity.json", "alpaca")]
    assert sum("{{name}}" in text for text in texts) > 50
