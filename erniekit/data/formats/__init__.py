"""Sample formats: each turns one JSON record into a Conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erniekit.data.conversation import Conversation, SampleError
from erniekit.data.formats.erniekit_vl import parse_erniekit_vl
from erniekit.data.formats.messages import parse_messages

# format -> (the key that a record of this format has, its parser)
_FORMATS = {"messages": ("messages", parse_messages), "erniekit": ("text_info", parse_erniekit_vl)}


def parse_record(record: Any, *, format: str, base_dir: Path, sample_id: str) -> Conversation:
    """A JSON record as a Conversation.

    format: "messages", "erniekit", or "auto" = whichever its keys say, record by record. base_dir: what
    relative paths of pictures are relative to. Raises SampleError.
    """
    if not isinstance(record, dict):
        raise SampleError(sample_id, "bad record", f"a sample must be a JSON object, this is {_kind(record)}")
    names = list(_FORMATS) if format == "auto" else [format]
    for name in names:
        key, parse = _FORMATS[name]
        if key in record:
            return parse(record, base_dir=base_dir, sample_id=sample_id)
    expected = " or ".join(f'"{_FORMATS[name][0]}" (format {name})' for name in names)
    found = ", ".join(f'"{key}"' for key in record) or "none"
    raise SampleError(
        sample_id, "unknown format", f"unknown sample format: expected the key {expected}; found: {found}"
    )


def _kind(value: Any) -> str:
    kinds = {
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), "something else")
