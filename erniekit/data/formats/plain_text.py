"""Format "text": plain text for continued pre-training, {"text": "..."}."""

from __future__ import annotations

from typing import Any

from erniekit.data.chat.conversation import Conversation, Message, TextPart
from erniekit.data.formats.fields.context import SampleContext


def parse_plain_text(record: dict[str, Any], sample: SampleContext) -> Conversation:
    """One record as a Conversation with a single message of role text. Raises SampleError."""
    sample.check_keys("the record", "record", record, ("text",))
    return plain_text(sample.text(record, "text"), sample)


def plain_text(text: str, sample: SampleContext, *, trained: bool = True) -> Conversation:
    """The Conversation of a text, by default trained as a whole. Raises SampleError if it is empty."""
    if not text:
        raise sample.bad("the text is empty")
    return Conversation((Message("text", (TextPart(text),), trained),), sample.sample_id)
