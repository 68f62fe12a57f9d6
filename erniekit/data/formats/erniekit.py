"""Format "erniekit": samples of ERNIEKit, recognized by their keys.

`text_info`: multimodal chats (erniekit_vl); `src` with `response`: preference pairs, `src` with `tgt`: text chats, and
`tgt` or `text` alone: text for continued pre-training (erniekit_text).
"""

from __future__ import annotations

from typing import Any

from erniekit.data.chat.conversation import Conversation
from erniekit.data.formats.erniekit_text import parse_preference, parse_pretraining, parse_text_chat
from erniekit.data.formats.erniekit_vl import parse_multimodal
from erniekit.data.formats.fields.context import SampleContext

_KEYS = ("text_info", "src", "tgt", "text")


def parse_erniekit(record: dict[str, Any], sample: SampleContext) -> Conversation:
    """One record as a Conversation. Its first key of _KEYS that is not null decides the format. Raises SampleError."""
    there = [key for key in _KEYS if key in record]
    key = next((key for key in there if record[key] is not None), there[0])
    if key == "text_info":
        return parse_multimodal(record, sample)
    if key != "src":
        return parse_pretraining(record, sample)
    if record.get("response") is not None or record.get("sort") is not None:
        return parse_preference(record, sample)
    return parse_text_chat(record, sample)
