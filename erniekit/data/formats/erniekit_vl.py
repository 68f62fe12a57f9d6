"""Format "erniekit": the multimodal samples of ERNIEKit, `text_info` and `image_info`.

{"text_info": [{"text", "tag": "mask" | "no_mask", "label": optional 0 | 1}, ...],
 "image_info": [{"image_url": path or base64, "matched_text_index": 0}, ...], "is_system": optional 0 | 1}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erniekit.data.conversation import Conversation, ImagePart, Message, Part, Role, SampleError, TextPart
from erniekit.data.media import resolve_source

_UNSUPPORTED = ("video_info", "tools", "order")
_UNSUPPORTED_IN_TEXT = ("tool_calls", "tool_response")


def parse_erniekit_vl(record: dict[str, Any], *, base_dir: Path, sample_id: str) -> Conversation:
    """One record as a Conversation.

    Texts alternate, the user's (`mask`) first, the assistant's (`no_mask`) carry loss unless their `label` is
    0. A picture stands before the text of its `matched_text_index` (several in the order given), which must
    be a user's. With `is_system` the first text is the system prompt; a `no_mask` text after it is a filler
    that ERNIEKit drops, and so is dropped here. Indices count the texts as written. Raises SampleError.
    """
    for key in _UNSUPPORTED:
        if record.get(key):
            raise SampleError(sample_id, "not supported", f'"{key}" is not supported yet')
    texts = record["text_info"]
    if not isinstance(texts, list) or not texts:
        raise _bad(sample_id, '"text_info" must be a list of at least one text')
    roles = _roles(texts, bool(record.get("is_system")), sample_id)
    pictures = _pictures(record.get("image_info") or [], roles, base_dir, sample_id)
    messages = []
    for index, (entry, role) in enumerate(zip(texts, roles, strict=True)):
        if role is None:
            continue
        parts: tuple[Part, ...] = (*pictures.get(index, ()), TextPart(entry["text"]))
        messages.append(Message(role, parts, role == "assistant" and entry.get("label", 1) != 0))
    return Conversation(tuple(messages), sample_id)


def _roles(texts: list[Any], is_system: bool, sample_id: str) -> list[Role | None]:
    """Whose each text is; None for the filler after a system prompt."""
    roles: list[Role | None] = []
    expected: Role = "user"
    for index, entry in enumerate(texts):
        where = f"text_info[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise _bad(sample_id, f'{where} must be an object whose "text" is a string')
        for key in _UNSUPPORTED_IN_TEXT:
            if entry.get(key):
                raise SampleError(sample_id, "not supported", f'{where}: "{key}" is not supported yet')
        tag = entry.get("tag")
        if tag not in ("mask", "no_mask"):
            raise _bad(
                sample_id, f'{where}: "tag" must be "mask" (no loss) or "no_mask" (loss), it is {tag!r}'
            )
        if is_system and index == 0 and tag == "mask":
            roles.append("system")
            continue
        if is_system and index == 1 and tag == "no_mask":
            roles.append(None)
            continue
        if (tag == "no_mask") != (expected == "assistant"):
            raise _bad(
                sample_id, f'{where}: tags must alternate, "mask" (user) first; here "{tag}" is out of turn'
            )
        if expected == "assistant" and not entry["text"]:
            raise _bad(sample_id, f"{where}: the assistant's answer is empty")
        roles.append(expected)
        expected = "assistant" if expected == "user" else "user"
    return roles


def _pictures(
    entries: Any, roles: list[Role | None], base_dir: Path, sample_id: str
) -> dict[int, tuple[ImagePart, ...]]:
    """Pictures by the index of the text before which they stand."""
    if not isinstance(entries, list):
        raise _bad(sample_id, '"image_info" must be a list')
    pictures: dict[int, tuple[ImagePart, ...]] = {}
    for number, entry in enumerate(entries):
        where = f"image_info[{number}]"
        if not isinstance(entry, dict) or not entry.get("image_url"):
            raise _bad(sample_id, f'{where} must be an object with "image_url"')
        if entry.get("image_type", "image") != "image":
            raise SampleError(
                sample_id,
                "not supported",
                f'{where}: image_type "{entry["image_type"]}" is not supported yet',
            )
        index = entry.get("matched_text_index", 0)
        if not isinstance(index, int) or not 0 <= index < len(roles):
            raise _bad(
                sample_id, f"{where}: matched_text_index must be 0 to {len(roles) - 1}, it is {index!r}"
            )
        if roles[index] != "user":
            raise _bad(
                sample_id,
                f"{where}: text_info[{index}] is not a user's text; a picture can only stand before one",
            )
        source = resolve_source(entry["image_url"], base_dir, sample_id)
        pictures[index] = (*pictures.get(index, ()), ImagePart(source))
    return pictures


def _bad(sample_id: str, detail: str) -> SampleError:
    return SampleError(sample_id, "bad record", detail)
