"""Converts the messages and tools of a request to a conversation for the encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erniekit.data.chat.conversation import Conversation
from erniekit.data.formats import parse_record
from erniekit.data.media.access import NO_URLS, MediaAccess


def to_conversation(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    base_dir: Path,
    sample_id: str,
    access: MediaAccess = NO_URLS,
) -> Conversation:
    """A conversation for `Encoder.encode_prompt`.

    messages: as in the format "messages", but `<image>`, `<video>` and paths in tags are plain text, and there are no
    columns with media; tools: as in OpenAI's API. base_dir: the directory for relative paths of media; sample_id: the
    name of the chat in errors; access: which media may be read. Raises SampleError.
    """
    record = {"messages": [_plain(message) for message in messages], "tools": list(tools or ())}
    return parse_record(record, format="messages", base_dir=base_dir, sample_id=sample_id, access=access)


def _plain(message: Mapping[str, Any]) -> Any:
    """The message with its text as a part, where `<image>` is plain text; in a string it is a placeholder."""
    if not isinstance(message, Mapping) or message.get("role") in ("assistant", "system", "developer"):
        return message
    content = message.get("content")
    return (
        {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message
    )
