"""The contents of a sample, from its conversation alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace

from erniekit.data.chat.conversation import (
    Conversation,
    ImagePart,
    Part,
    ReasoningPart,
    ToolCallPart,
    VideoPart,
)

# Names of `contents` in JSON reports and their labels, in display order.
CONTENTS = {
    "text only": "text only",
    "with pictures": "with images",
    "with videos": "with videos",
    "with tools listed": "with tools listed",
    "with tool calls": "with tool calls",
    "with reasoning": "with reasoning",
    "preference pairs": "preference pairs",
    "plain text": "plain text",
}
_THINK = "<think>"


def contents(conversation: Conversation) -> set[str]:
    """The names in CONTENTS that apply; "text only" is a chat without images and videos."""
    if conversation.messages[0].role == "text":
        return {"plain text"}
    parts = list(_parts(conversation))
    found = {
        "with pictures": any(isinstance(part, ImagePart) for part in parts),
        "with videos": any(isinstance(part, VideoPart) for part in parts),
        "with tools listed": bool(conversation.tools),
        "with tool calls": any(isinstance(part, ToolCallPart) for part in parts),
        "with reasoning": _reasons(conversation),
        "preference pairs": bool(conversation.rejected),
    }
    found["text only"] = not (found["with pictures"] or found["with videos"])
    return {name for name, is_there in found.items() if is_there}


def media_parts(conversation: Conversation) -> list[ImagePart | VideoPart]:
    """All images and videos, in order."""
    return [part for part in _parts(conversation) if isinstance(part, ImagePart | VideoPart)]


def characters(part: Part) -> int:
    """Characters of the text of a part; 0 for an image or video."""
    if isinstance(part, ImagePart | VideoPart):
        return 0
    return len(part.name) + len(part.arguments) if isinstance(part, ToolCallPart) else len(part.text)


def all_characters(conversation: Conversation) -> int:
    """Characters of all texts and of the list of tools."""
    tools = json.dumps(conversation.tools, ensure_ascii=False) if conversation.tools else ""
    return len(tools) + sum(characters(part) for part in _parts(conversation))


def digest(conversation: Conversation) -> int:
    """A 64-bit hash that is equal for equal conversations, even in different files.

    Among ten million different conversations, two collide with a probability of 1 in 400,000.
    """
    found = hashlib.blake2b(digest_size=8)
    for piece in _pieces(conversation):
        found.update(len(piece).to_bytes(8, "little") + piece)
    return int.from_bytes(found.digest(), "little")


def _pieces(conversation: Conversation) -> Iterator[bytes]:
    yield json.dumps(conversation.tools, sort_keys=True).encode()
    for message in (*conversation.messages, *conversation.rejected_prompt, *conversation.rejected):
        yield f"{message.role} {message.trained} {len(message.parts)}".encode()
        for part in message.parts:
            if not isinstance(part, ImagePart | VideoPart):
                yield repr(part).encode()
                continue
            yield repr(replace(part, source="")).encode()
            sources = part.source if isinstance(part.source, tuple) else (part.source,)
            yield from (source if isinstance(source, bytes) else source.encode() for source in sources)


def _parts(conversation: Conversation) -> Iterator[Part]:
    for message in conversation.messages:
        yield from message.parts


def _reasons(conversation: Conversation) -> bool:
    """Whether an answer has reasoning, as a separate part or as a block at the start of its text."""
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, ReasoningPart) and part.text.strip():
                return True
        first = message.parts[0] if message.parts else None
        if message.role == "assistant" and getattr(first, "text", "").lstrip("\n").startswith(_THINK):
            return True
    return False
