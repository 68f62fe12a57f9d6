"""What a sample holds, told from its conversation alone."""

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

# What `contents` tells, in the order in which it is shown.
CONTENTS = (
    "text only",
    "with pictures",
    "with videos",
    "with tools listed",
    "with tool calls",
    "with reasoning",
    "preference pairs",
    "plain text",
)
_THINK = "<think>"


def contents(conversation: Conversation) -> set[str]:
    """Which of CONTENTS it is; "text only" is a chat without pictures and videos."""
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
    """Its pictures and videos, in order."""
    return [part for part in _parts(conversation) if isinstance(part, ImagePart | VideoPart)]


def characters(part: Part) -> int:
    """Characters of its text, 0 for a picture or video."""
    if isinstance(part, ImagePart | VideoPart):
        return 0
    return len(part.name) + len(part.arguments) if isinstance(part, ToolCallPart) else len(part.text)


def all_characters(conversation: Conversation) -> int:
    """Characters of all its texts and of its list of tools."""
    tools = json.dumps(conversation.tools, ensure_ascii=False) if conversation.tools else ""
    return len(tools) + sum(characters(part) for part in _parts(conversation))


def digest(conversation: Conversation) -> int:
    """64 bits that are the same for conversations that are the same but for where they stand.

    Among ten million different ones, two share them with a chance of 1 to 400,000.
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
    """Whether an answer has reasoning, as a part of its own or as a block at its beginning."""
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, ReasoningPart) and part.text.strip():
                return True
        first = message.parts[0] if message.parts else None
        if message.role == "assistant" and getattr(first, "text", "").lstrip("\n").startswith(_THINK):
            return True
    return False
