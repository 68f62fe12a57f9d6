"""ms-swift's grounding data: writes the `objects` of a record into its texts.

{"objects": {"ref": ["sheep"], "bbox": [[x1, y1, x2, y2], ...], "bbox_type": "real" | "norm1", "image_id": [0, ...]}}
Each `<ref-object>` in the texts of a chat is replaced by the next name in `ref`, each `<bbox>` by the next box (or
point [x, y]). Boxes are in pixels of their image, or fractions of its sides ("norm1"). They are written as ERNIE 4.5 VL
expects coordinates: a JSON list of whole numbers from 0 to 1000, relative to the image's width and height
(https://github.com/PaddlePaddle/ERNIE/issues/1364).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from erniekit.data.chat.conversation import (
    Conversation,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
)
from erniekit.data.formats.fields.context import SampleContext, describe_value, quoted
from erniekit.data.media.images import image_size
from erniekit.display.text import counted
from erniekit.local_files import check_json_values

_MARK = re.compile("<ref-object>|<bbox>")
_TAG = re.compile(r"<img>[^<>\n]+</img>")
_SCALE = 1000
_LARGEST = 1e9  # above every image size; comparisons with NaN fail too
# The range of coordinates in boxes of each type; None: pixels. The last two are names of ms-swift 2.
_SIDES = {"real": None, "norm1": 1, "norm1000": 1000, "norm_1": 1, "norm_1000": 1000}
_KEYS = ("ref", "bbox", "bbox_type", "image_id")
# Image sizes in ms-swift's data; they are read from the images instead.
_IGNORED = ("width", "height")

Chat = Sequence[Message]


@dataclass(frozen=True, slots=True)
class _Objects:
    """The objects of a record. key: their key in the record; sides: see _SIDES; image_ids: the image of each box."""

    key: str
    refs: list[str]
    boxes: list[list[float]]
    sides: int | None
    image_ids: list[int]


def fill(record: dict[str, Any], messages: Chat, sample: SampleContext) -> list[Message]:
    """A chat with its marks replaced by objects. Raises SampleError unless their numbers are equal."""
    objects = _read(record, "objects", [messages], sample)
    if objects is None:
        return list(messages)
    filled = _Filling(objects, messages, sample)
    filled.check(filled)
    return filled.messages


def fill_pair(
    record: dict[str, Any], chosen: Chat, rejected: Chat, sample: SampleContext
) -> tuple[list[Message], list[Message]]:
    """Both chats of a preference pair with their marks replaced by objects.

    The rejected chat has `rejected_objects`; without them both chats have the same objects, and one of them may use
    only some. Raises SampleError.
    """
    objects = _read(record, "objects", [chosen, rejected], sample)
    own = _read(record, "rejected_objects", [rejected], sample)
    first = None if objects is None else _Filling(objects, chosen, sample)
    used = own or objects
    second = None if used is None else _Filling(used, rejected, sample)
    if first is not None:
        first.check(first if own else second or first)
    if second is not None:
        second.check(second if own else first or second)
    return first.messages if first else list(chosen), second.messages if second else list(rejected)


def notice_marks(conversation: Conversation, sample: SampleContext) -> None:
    """Report marks that remain as text."""
    for message in (*conversation.messages, *conversation.rejected_prompt, *conversation.rejected):
        for part in message.parts:
            text = part.text if isinstance(part, TextPart | ReasoningPart) else ""
            if "<" in text and _MARK.search(text):
                sample.notice('a text has <bbox> or <ref-object>, which remain text without "objects"')
            if "<" in text and _TAG.search(text):
                sample.notice(
                    "a text has <img>...</img>, which is an image only around a path in a user's string"
                )


class _Filling:
    """Replaces the marks of a chat with objects, in order."""

    def __init__(self, objects: _Objects, messages: Chat, sample: SampleContext) -> None:
        self._objects = objects
        self._sample = sample
        self._images = [part for message in messages for part in message.parts if isinstance(part, ImagePart)]
        self._sizes: dict[int, tuple[int, int]] = {}
        self.used = {"ref": 0, "bbox": 0}
        self.messages = [
            replace(message, parts=tuple(self._part(part) for part in message.parts)) for message in messages
        ]

    def check(self, other: _Filling) -> None:
        """Raises SampleError unless this chat or the other one, which has the same objects, uses all of them."""
        for kind, mark, listed in (
            ("ref", "<ref-object>", self._objects.refs),
            ("bbox", "<bbox>", self._objects.boxes),
        ):
            marks = max(self.used[kind], other.used[kind])
            if marks != len(listed):
                detail = (
                    f'{counted(marks, f"{mark} mark")} in the texts, {len(listed)} in "{kind}" of '
                    f'"{self._objects.key}": the numbers must be equal'
                )
                raise self._sample.error("objects do not match", detail)

    def _part(self, part: Part) -> Part:
        if isinstance(part, TextPart | ReasoningPart) and "<" in part.text:
            return replace(part, text=_MARK.sub(lambda match: self._next(match.group()), part.text))
        if isinstance(part, ToolCallPart) and "<" in part.arguments:
            # In JSON text, a mark can only be in a string.
            return replace(
                part,
                arguments=_MARK.sub(
                    lambda match: json.dumps(self._next(match.group()), ensure_ascii=False)[1:-1],
                    part.arguments,
                ),
            )
        return part

    def _next(self, mark: str) -> str:
        kind = "ref" if mark == "<ref-object>" else "bbox"
        number = self.used[kind]
        self.used[kind] += 1
        listed: list[Any] = self._objects.refs if kind == "ref" else self._objects.boxes
        if number >= len(listed):
            return mark  # `check` reports both numbers
        return self._objects.refs[number] if kind == "ref" else json.dumps(self._place(number))

    def _place(self, number: int) -> list[int]:
        """A box with coordinates from 0 to 1000; the top left corner comes first."""
        box, sides = self._objects.boxes[number], self._objects.sides
        width, height = (sides, sides) if sides is not None else self._size(number)
        scaled = [
            round(value / side * _SCALE)
            for value, side in zip(box, (width, height) * (len(box) // 2), strict=True)
        ]
        if not all(0 <= value <= _SCALE for value in scaled):
            detail = f"box {number + 1} ({quoted(box)}) is outside its image of {width} x {height}"
            raise self._sample.bad(f'"{self._objects.key}": {detail}')
        for axis in range(2 if len(box) == 4 else 0):
            scaled[axis], scaled[axis + 2] = sorted((scaled[axis], scaled[axis + 2]))
        return scaled

    def _size(self, number: int) -> tuple[int, int]:
        """(width, height) in pixels of the image of a box."""
        image_id = self._objects.image_ids[number]
        if image_id >= len(self._images):
            found = f"the texts have {counted(len(self._images), 'image')}"
            detail = f"box {number + 1} is in image {image_id} (from 0), but {found}"
            raise self._sample.bad(f'"{self._objects.key}": {detail}')
        if image_id not in self._sizes:
            height, width = image_size(self._images[image_id].source, self._sample.sample_id)
            self._sizes[image_id] = width, height
        return self._sizes[image_id]


def _read(record: dict[str, Any], key: str, chats: Sequence[Chat], sample: SampleContext) -> _Objects | None:
    value = record.get(key)
    if isinstance(value, str) and value:
        try:
            check_json_values(value)
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise sample.bad(f'"{key}" is not valid JSON: {error}') from error
    if not value:
        return None
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = _joined(value, key, sample)
    if not isinstance(value, dict) or not ("ref" in value or "bbox" in value):
        if any(_has_marks(chat) for chat in chats):
            form = '{"ref": [...], "bbox": [...]}, as ms-swift has it'
            raise sample.bad(f'"{key}" must be {form}, not {describe_value(value)}')
        sample.notice(f"key {quoted(key)} of a record is not read")
        return None
    for name, inner in value.items():
        if name not in (*_KEYS, *_IGNORED) and inner:
            sample.notice(f"key {quoted(name)} of {key} is not read")
    refs = _list(value, "ref", key, sample)
    if not all(isinstance(ref, str) for ref in refs):
        raise sample.bad(f'"{key}": "ref" must be a list of strings')
    boxes = _list(value, "bbox", key, sample)
    for number, box in enumerate(boxes, 1):
        if not isinstance(box, list) or len(box) not in (2, 4) or not all(map(_is_number, box)):
            detail = f"box {number} must be [x, y] or [x1, y1, x2, y2], not {quoted(box)}"
            raise sample.bad(f'"{key}": {detail}')
    kind = value.get("bbox_type") or "real"
    if not isinstance(kind, str) or kind not in _SIDES:
        raise sample.bad(f'"{key}": "bbox_type" must be "real" or "norm1", not {quoted(kind)}')
    image_ids = _list(value, "image_id", key, sample) or [0] * len(boxes)
    if len(image_ids) != len(boxes):
        numbers = counted(len(image_ids), "value")
        found = f'"image_id" has {numbers}, "bbox" has {len(boxes)}'
        raise sample.bad(f'"{key}": {found}: the numbers must be equal')
    for image_id in image_ids:
        if isinstance(image_id, bool) or not isinstance(image_id, int) or image_id < 0:
            raise sample.bad(
                f'"{key}": "image_id" must be numbers of images, from 0, it has {quoted(image_id)}'
            )
    return _Objects(key, refs, boxes, _SIDES[kind], image_ids)


def _joined(items: list[dict[str, Any]], key: str, sample: SampleContext) -> dict[str, Any]:
    """ms-swift 2's form (objects with caption, bbox, bbox_type and image) in the newer form."""
    kinds = {
        item.get("bbox_type") or "real" for item in items if isinstance(item.get("bbox_type"), str | None)
    }
    if len(kinds) > 1:
        raise sample.bad(f'"{key}": boxes of different types {", ".join(sorted(kinds))}')
    found: dict[str, list[Any]] = {"ref": [], "bbox": [], "image_id": []}
    for item in items:
        for name, other in (("ref", "caption"), ("bbox", "bbox"), ("image_id", "image")):
            inner = item.get(name) if item.get(name) is not None else item.get(other)
            if inner is not None:
                found[name].append(inner)
    return {**{name: inner for name, inner in found.items() if inner}, "bbox_type": next(iter(kinds), None)}


def _list(value: dict[str, Any], name: str, key: str, sample: SampleContext) -> list[Any]:
    found = value.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise sample.bad(f'"{key}": "{name}" must be a list, not {describe_value(found)}')
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _has_marks(messages: Chat) -> bool:
    return any(
        isinstance(part, TextPart | ReasoningPart) and _MARK.search(part.text)
        for message in messages
        for part in message.parts
    )
