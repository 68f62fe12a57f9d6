"""Parses one record for a test, and takes its messages apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erniekit.data.chat.conversation import Conversation, Message, TextPart, ToolCallPart
from erniekit.data.formats import parse_record


def parse(record: Any, format: str = "auto") -> Conversation:
    return parse_record(record, format=format, base_dir=Path("/data"), sample_id="f.jsonl:7")


def outline(messages: tuple[Message, ...]) -> list[tuple[str, str, bool]]:
    """(role, its text with calls as name(arguments), trained) of messages that are text."""
    return [(message.role, "|".join(map(_text, message.parts)), message.trained) for message in messages]


def _text(part: object) -> str:
    if isinstance(part, ToolCallPart):
        return f"{part.name}({part.arguments})"
    assert isinstance(part, TextPart)
    return part.text
