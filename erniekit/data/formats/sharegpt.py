"""Format "sharegpt": chats of {"from", "value"}, as in LLaMA-Factory and many public datasets.

{"conversations" or "conversation": [{"from": "human" | "gpt" | "system" | "function_call" | "observation",
                                       "value": string}],
 "system", "tools", "images", "videos": optional, "chosen" and "rejected": optional, messages of the same form}
The list may also consist of rounds: see `rounds`.
"""

from __future__ import annotations

from typing import Any

from erniekit.data.chat.conversation import Conversation
from erniekit.data.formats.fields import preference
from erniekit.data.formats.fields.context import SampleContext, describe_value, keys_of, quoted
from erniekit.data.formats.fields.markers import MEDIA_KEYS
from erniekit.data.formats.fields.tools import TOOL_KEYS
from erniekit.data.formats.messages import CALL_ROLE, MessageReader, chat_or_text
from erniekit.data.formats.rounds import are_rounds, read_rounds

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": CALL_ROLE,
    "tool_call": CALL_ROLE,
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
}
_KEYS = frozenset(("system", *TOOL_KEYS, *MEDIA_KEYS, *preference.KEYS))
_ALLOWED = "human, gpt, system, function_call, observation (or user, assistant, tool_call, tool)"


def parse_sharegpt(record: dict[str, Any], sample: SampleContext) -> Conversation:
    """One record as a Conversation.

    `<image>` and `<video>` in a human's text are marks for the record's `images` and `videos`. The value of a
    function_call is a call {"name", "arguments"} or a list of calls, usually as JSON text; right after a text of gpt,
    it belongs to the same turn. Messages may also have OpenAI's "role" and "content". Raises SampleError.
    """
    key = (
        "conversation"
        if record.get("conversations") is None and "conversation" in record
        else "conversations"
    )
    sample.check_keys("the record", "record", record, _KEYS | {key})
    reader = MessageReader(record, sample, lambda where, entry: _translated(where, entry, sample))
    entries = record.get(key)
    if are_rounds(entries):
        messages = read_rounds(entries, reader.marked, sample)
    else:
        messages = reader.chat("message", key, entries)
    messages = sample.with_system(record, messages)
    return chat_or_text(record, messages, reader, sample)


def _translated(where: str, entry: dict[str, Any], sample: SampleContext) -> dict[str, Any]:
    """A message of this format in the form of the format messages."""
    if entry.get("from") is None and entry.get("role") is not None:
        return entry
    name, value = entry.get("from"), entry.get("value")
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        found = f'no "from", only {keys_of(entry)}' if name is None else f"unknown role {quoted(name)}"
        raise sample.error("unknown role", f"{where}: {found}; allowed are {_ALLOWED}")
    structured = isinstance(value, dict) or (isinstance(value, list) and role == CALL_ROLE)
    if not isinstance(value, str) and not (structured and role in (CALL_ROLE, "tool")):
        raise sample.bad(f'{where} ({name}): "value" must be a string, not {describe_value(value)}')
    others = {key: inner for key, inner in entry.items() if key not in ("from", "value")}
    return {**others, "role": role, "content": value}
