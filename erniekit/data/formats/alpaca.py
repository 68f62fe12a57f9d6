"""Format "alpaca": instructions and their outputs.

{"instruction", "input": optional, "output", "system", "history": [[question, answer], ...], "tools", "images",
 "videos": optional}; a preference pair has "chosen" and "rejected" instead of "output"; ERNIEKit's pairs have
"question" instead of "instruction".
"""

from __future__ import annotations

from typing import Any

from erniekit.data.chat.conversation import Conversation
from erniekit.data.formats.fields import preference, turns
from erniekit.data.formats.fields.context import SampleContext
from erniekit.data.formats.fields.keys import REASONING
from erniekit.data.formats.fields.markers import MEDIA_KEYS
from erniekit.data.formats.fields.tools import TOOL_KEYS
from erniekit.data.formats.messages import MessageReader

_KEYS = frozenset(
    ("input", "output", "system", "history", *TOOL_KEYS, *REASONING, *MEDIA_KEYS, *preference.KEYS)
)


def parse_alpaca(record: dict[str, Any], sample: SampleContext) -> Conversation:
    """One record as a Conversation.

    The question is the instruction, a line break and the input; empty ones are left out. The answers in the history
    carry loss as well. Raises SampleError.
    """
    sample.check_keys("the record", "record", record, _KEYS | {_key(record)})
    reader = MessageReader(record, sample)
    messages = turns.history(record, reader.marked, sample)
    messages.append(turns.question(_question(record, sample), reader.marked))
    reasoning = turns.reasoning(record, sample)
    if record.get("chosen") is None and record.get("rejected") is None:
        messages.append(turns.answer('"output"', record.get("output"), sample, reasoning))
    messages = sample.with_system(record, messages)
    return preference.conversation(record, messages, reader, sample)


def _key(record: dict[str, Any]) -> str:
    return "question" if record.get("instruction") is None and "question" in record else "instruction"


def _question(record: dict[str, Any], sample: SampleContext) -> str:
    texts = (sample.text(record, _key(record)), sample.optional_text(record, "input"))
    return "\n".join(text for text in texts if text)
