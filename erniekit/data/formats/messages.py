"""Format "messages": chats as OpenAI's API has them, with LLaMA-Factory's way to name pictures as well.

{"messages": [{"role": "system" | "user" | "assistant", "content": string or list of parts,
               "reasoning_content": optional string, "loss": optional boolean}],
 "images": optional list, for the `<image>` marks in contents that are strings}
Parts: {"type": "text", "text"}, {"type": "image_url", "image_url": {"url"} or string},
       {"type": "image", "image": path, data: URI or base64}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from erniekit.data.conversation import (
    ROLES,
    Conversation,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    Role,
    SampleError,
    TextPart,
)
from erniekit.data.media import resolve_source

_MARK = "<image>"
_UNSUPPORTED_KEYS = ("tools", "functions", "videos", "audios")
_UNSUPPORTED_PARTS = ("video", "video_url", "audio", "input_audio", "file")


def parse_messages(record: dict[str, Any], *, base_dir: Path, sample_id: str) -> Conversation:
    """One record as a Conversation.

    In a user's content that is a string, each `<image>` stands for the next picture of the record's `images`;
    there must be as many marks as pictures. In a list of parts `<image>` is plain text. An assistant message
    carries loss unless it says `"loss": false` (or `"weight": 0`); its `reasoning_content` is what it thinks
    first. Raises SampleError.
    """
    for key in _UNSUPPORTED_KEYS:
        if record.get(key):
            raise SampleError(sample_id, "not supported", f'"{key}" is not supported yet')
    entries = record["messages"]
    if not isinstance(entries, list) or not entries:
        raise SampleError(sample_id, "bad record", '"messages" must be a list of at least one message')
    images = record.get("images") or []
    if not isinstance(images, list):
        raise SampleError(sample_id, "bad record", '"images" must be a list')
    marked = [ImagePart(resolve_source(image, base_dir, sample_id)) for image in images]
    reader = _MessageReader(base_dir, sample_id, iter(marked))
    messages = tuple(reader.message(number, entry) for number, entry in enumerate(entries, 1))
    if reader.marks != len(marked):
        detail = (
            f'{reader.marks} {_MARK} mark(s) in the users\' texts, {len(marked)} picture(s) in "images": the '
            f"numbers must be equal (to write a literal {_MARK}, give the content as a list of parts)"
        )
        raise SampleError(sample_id, "images do not match", detail)
    return Conversation(messages, sample_id)


class _MessageReader:
    """Reads the messages of one record; pictures of `images` are taken in the order of their marks."""

    def __init__(self, base_dir: Path, sample_id: str, marked: Iterator[ImagePart]) -> None:
        self.base_dir = base_dir
        self.sample_id = sample_id
        self.marked = marked
        self.marks = 0

    def message(self, number: int, entry: Any) -> Message:
        where = f"message {number}"
        if not isinstance(entry, dict):
            raise self._bad(f"{where} must be an object with role and content")
        role = self._role(where, entry)
        if entry.get("tool_calls") or entry.get("function_call"):
            raise SampleError(self.sample_id, "not supported", f"{where}: tool calls are not supported yet")
        parts = self._content(where, role, entry)
        reasoning = entry.get("reasoning_content")
        if reasoning is not None:
            if not isinstance(reasoning, str) or role != "assistant":
                raise self._bad(f'{where}: "reasoning_content" must be a string, in an assistant message')
            if reasoning:
                parts = (ReasoningPart(reasoning), *parts)
        if role == "assistant" and not any(isinstance(part, TextPart) and part.text for part in parts):
            raise self._bad(f"{where}: the assistant's answer is empty")
        return Message(role, parts, self._trained(where, role, entry))

    def _role(self, where: str, entry: dict[str, Any]) -> Role:
        role = entry.get("role")
        for known in ROLES:
            if role == known:
                return known
        if role in ("tool", "function"):
            raise SampleError(self.sample_id, "not supported", f'{where}: role "{role}" is not supported yet')
        found = "no role" if role is None else f"unknown role {role!r}"
        raise SampleError(self.sample_id, "unknown role", f"{where}: {found}; allowed are {', '.join(ROLES)}")

    def _content(self, where: str, role: Role, entry: dict[str, Any]) -> tuple[Part, ...]:
        if "content" not in entry:
            raise self._bad(f'{where} ({role}) has no "content"')
        content = entry["content"]
        if isinstance(content, str):
            return tuple(self._marked_text(content)) if role == "user" else (TextPart(content),)
        if isinstance(content, list):
            return tuple(
                self._part(f"{where}, part {number}", role, part) for number, part in enumerate(content, 1)
            )
        found = "null" if content is None else f"of type {type(content).__name__}"
        raise self._bad(f"{where} ({role}): content must be a string or a list of parts, it is {found}")

    def _marked_text(self, text: str) -> Iterator[Part]:
        pieces = text.split(_MARK)
        for index, piece in enumerate(pieces):
            if index:
                self.marks += 1
                # With too few pictures the count at the record's end is the error; go on to complete it.
                image = next(self.marked, None)
                if image is not None:
                    yield image
            if piece or len(pieces) == 1:
                yield TextPart(piece)

    def _part(self, where: str, role: Role, part: Any) -> Part:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise self._bad(f'{where}: "text" must be a string')
            return TextPart(part["text"])
        if kind in ("image", "image_url"):
            if role != "user":
                raise self._bad(f"{where}: a picture can only be in a user message, not in one of the {role}")
            if part.get(kind) is None:
                raise self._bad(f'{where}: a part of type {kind} needs the key "{kind}"')
            return ImagePart(resolve_source(part[kind], self.base_dir, self.sample_id))
        if kind in _UNSUPPORTED_PARTS:
            raise SampleError(
                self.sample_id, "not supported", f'{where}: parts of type "{kind}" are not supported yet'
            )
        raise self._bad(f"{where}: type must be text, image or image_url, it is {kind!r}")

    def _trained(self, where: str, role: Role, entry: dict[str, Any]) -> bool:
        loss = entry.get("loss")
        if loss is None and role == "assistant" and entry.get("weight") is not None:
            if entry["weight"] not in (0, 1):
                raise self._bad(f'{where}: "weight" must be 0 or 1')
            return bool(entry["weight"])
        if loss is None:
            return role == "assistant"
        if not isinstance(loss, bool):
            raise self._bad(f'{where}: "loss" must be true or false')
        if loss and role != "assistant":
            raise self._bad(f"{where}: only the assistant's messages carry loss, not those of the {role}")
        return loss

    def _bad(self, detail: str) -> SampleError:
        return SampleError(self.sample_id, "bad record", detail)
