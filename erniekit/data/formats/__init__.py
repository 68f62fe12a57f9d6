"""Sample formats: each turns one JSON record into a Conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from erniekit.config.choices import FORMATS
from erniekit.data.chat.conversation import (
    Conversation,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
)
from erniekit.data.formats.alpaca import parse_alpaca
from erniekit.data.formats.erniekit import parse_erniekit
from erniekit.data.formats.fields.calls import notice_calls
from erniekit.data.formats.fields.context import SampleContext, describe_value
from erniekit.data.formats.fields.objects import notice_marks
from erniekit.data.formats.messages import parse_messages
from erniekit.data.formats.plain_text import parse_plain_text
from erniekit.data.formats.query_response import PAIRS, parse_query_response
from erniekit.data.formats.sharegpt import parse_sharegpt
from erniekit.data.formats.xlam import parse_xlam
from erniekit.data.media.access import NO_URLS, MediaAccess
from erniekit.errors import DataError

_PARSERS: dict[str, Callable[[dict[str, Any], SampleContext], Conversation]] = {
    "messages": parse_messages,
    "sharegpt": parse_sharegpt,
    "alpaca": parse_alpaca,
    "query_response": parse_query_response,
    "xlam": parse_xlam,
    "erniekit": parse_erniekit,
    "text": parse_plain_text,
}
_MOST_KEYS, _LONGEST_KEY = 20, 40  # shown in an error
# As in the identity datasets of LLaMA-Factory and ms-swift. Code has braces too, with longer text in them.
_PLACEHOLDER = re.compile(r"\{\{ ?\w{2,30} ?\}\}")
_CHATS = ("messages", "sharegpt", "alpaca", "query_response")

# (format, keys of its records), tried in this order: keys of only one format come first, keys that several formats
# share come last.
_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("messages", ("messages",)),
    ("messages", ("input", "preferred_output")),
    ("messages", ("input", "non_preferred_output")),
    ("messages", ("chosen_messages", "rejected_messages")),
    ("sharegpt", ("conversations",)),
    ("sharegpt", ("conversation",)),
    ("erniekit", ("text_info",)),
    ("erniekit", ("src",)),
    ("alpaca", ("instruction",)),
    ("alpaca", ("question", "chosen", "rejected")),
    ("xlam", ("query", "answers", "tools")),
    *(("query_response", pair) for pair in PAIRS),
    ("query_response", ("query", "chosen", "rejected")),
    ("query_response", ("prompt", "chosen", "rejected")),
    ("messages", ("chosen", "rejected")),
    ("erniekit", ("tgt",)),
    ("text", ("text",)),
)
# Keys that identify a record only if its format is given.
_MORE_SIGNS = (
    ("erniekit", ("text",)),
    ("query_response", ("question", "chosen", "rejected")),
)


def detect(record: Any) -> str | None:
    """The format of a record by its keys; None if no format has them. Keys with the value null count last."""
    if not isinstance(record, dict):
        return None
    filled = {key for key, value in record.items() if value is not None}
    for keys in (filled, record.keys()):
        for name, sign in _SIGNS:
            if all(key in keys for key in sign):
                return name
    return None


def parse_record(
    record: Any, *, format: str, base_dir: Path, sample_id: str, access: MediaAccess = NO_URLS
) -> Conversation:
    """A JSON record as a Conversation.

    format: one of FORMATS, or "auto" to detect the format of each record. base_dir: the base of relative paths of
    media; access: which media may be read. Raises SampleError, and DataError for an unknown format.
    """
    if format != "auto" and format not in FORMATS:
        raise DataError(f'unknown data format "{format}": it must be auto, {", ".join(FORMATS)}')
    sample = SampleContext(base_dir, sample_id, access)
    try:
        return _parse(record, format, sample)
    except RecursionError:
        raise sample.bad("it is nested too deeply") from None


def _parse(record: Any, format: str, sample: SampleContext) -> Conversation:
    if not isinstance(record, dict):
        raise sample.bad(f"a sample must be a JSON object, this is {describe_value(record)}")
    name = detect(record) if format == "auto" else format
    if name is None or not _has_sign(record.keys(), name):
        raise sample.error("unknown format", _unknown(record, format))
    if name in _CHATS:
        for key in ("label", "kto_tag"):
            if isinstance(record.get(key), bool):
                raise sample.error(
                    "not supported", f'"{key}" marks unpaired preferences (KTO): not supported'
                )
    conversation = _PARSERS[name](record, sample)
    _check(conversation, sample)
    _note_placeholders(conversation, sample)
    notice_marks(conversation, sample)
    notice_calls(conversation, sample)
    return replace(conversation, notices=tuple(sample.notices)) if sample.notices else conversation


def _has_sign(keys: Collection[str], name: str) -> bool:
    signs = (sign for owner, sign in (*_SIGNS, *_MORE_SIGNS) if owner == name)
    return any(all(key in keys for key in sign) for sign in signs)


def _unknown(record: dict[str, Any], format: str) -> str:
    signs = [sign for owner, sign in _SIGNS if format in ("auto", owner)]
    expected = " or ".join(" + ".join(f'"{key}"' for key in sign) for sign in signs)
    named = "" if format == "auto" else f" (format {format})"
    other = None if format == "auto" else detect(record)
    hint = "" if other is None else f"; it looks like {other}: leave out data.format, to detect it"
    found = ", ".join(json.dumps(key)[:_LONGEST_KEY] for key in list(record)[:_MOST_KEYS]) or "none"
    return f"unknown sample format{named}; found: {found}; expected the keys {expected}{hint}"


def _check(conversation: Conversation, sample: SampleContext) -> None:
    """Raises SampleError for conversations that are invalid in every format."""
    if not conversation.messages:
        raise sample.bad("the sample has no messages")
    prompt = conversation.rejected_prompt
    after_first = (*conversation.messages[1:], *prompt[1:], *conversation.rejected)
    if any(message.role == "system" for message in after_first):
        raise sample.bad("a system message can only be the first of a sample")
    for message in (*conversation.messages, *prompt, *conversation.rejected):
        _check_text(message, sample)


def _note_placeholders(conversation: Conversation, sample: SampleContext) -> None:
    """Reports placeholders such as {{name}} in a chat, which a script should have replaced."""
    for message in (*conversation.messages, *conversation.rejected):
        for part in message.parts:
            if isinstance(part, TextPart | ReasoningPart) and "{{" in part.text and message.role != "text":
                for found in _PLACEHOLDER.findall(part.text):
                    sample.notice(f"placeholder {found} is not filled in")


def _check_text(message: Message, sample: SampleContext) -> None:
    """Raises SampleError for unpaired surrogates: JSON can contain them, but tokenizers reject them."""
    for part in message.parts:
        for text in _texts(part):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                detail = (
                    f"a text of the {message.role} has half a surrogate pair (character {error.start + 1})"
                )
                raise sample.bad(detail) from error


def _texts(part: Part) -> tuple[str, ...]:
    if isinstance(part, TextPart | ReasoningPart):
        return (part.text,)
    if isinstance(part, ToolCallPart):
        return (part.name, part.arguments)
    sources = part.source if isinstance(part.source, tuple) else (part.source,)
    return tuple(source for source in sources if isinstance(source, str))
