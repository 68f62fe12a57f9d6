"""Shared by all formats: the source of a record, reading its fields, and the wording of errors."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erniekit.data.chat.conversation import ImagePart, Message, SampleError, TextPart, VideoPart
from erniekit.data.formats.fields.keys import HARMLESS, LOSS_SWITCHES, REASONING, REFUSED, Level
from erniekit.data.formats.fields.media_options import IMAGE_KEYS, VIDEO_KEYS, with_options
from erniekit.data.media.access import MediaAccess
from erniekit.data.media.images import resolve_source
from erniekit.local_files import check_json_values

_LONGEST_QUOTE = 80  # characters
_MOST_KEYS = 10  # named in an error
_SOURCES = ("bytes", "path", "url")


@dataclass(frozen=True, slots=True)
class SampleContext:
    """Where a record comes from, and the notices about it; used while a format reads it.

    base_dir: the base of relative paths of media; sample_id: "file:line"; access: which media may be read. notices: see
    `Conversation`, oldest first.
    """

    base_dir: Path
    sample_id: str
    access: MediaAccess
    notices: dict[str, None] = field(default_factory=dict)

    def error(self, reason: str, detail: str) -> SampleError:
        """An error about this record."""
        return SampleError(self.sample_id, reason, detail)

    def bad(self, detail: str) -> SampleError:
        """The most frequent error: the record does not follow its format."""
        return self.error("bad record", detail)

    def notice(self, text: str) -> None:
        """Reports something that users should know but is not an error. Equal texts of samples are counted together."""
        self.notices[text] = None

    def check_keys(self, where: str, level: Level, entry: Mapping[str, Any], read: Collection[str]) -> None:
        """Reports keys of a record, message or part that are not read.

        read: the keys that its format reads. Keys with null or empty values are ignored. Raises SampleError for a
        key that would change training.
        """
        for key, value in entry.items():
            if key in read or value is None or value in ("", [], {}):
                continue
            if key in REFUSED[level]:
                neutral, advice = REFUSED[level][key]
                if value not in neutral:
                    raise self.error("not supported", f'{where}: "{key}" {advice}')
            elif key not in HARMLESS[level]:
                self.notice(f"key {quoted(key)} of a {level} is not read")

    def loss(self, where: str, entry: Mapping[str, Any]) -> bool | None:
        """The loss switch of a message or part; None if it has none. Raises SampleError."""
        found = {key: entry[key] for key in LOSS_SWITCHES if entry.get(key) is not None}
        for key, value in found.items():
            if not isinstance(value, bool | int | float) or value not in (0, 1):
                detail = f'"{key}" must be true or false (1 or 0; tokens have no other weights), not {quoted(value)}'
                raise self.bad(f"{where}: {detail}")
        if len({bool(value) for value in found.values()}) > 1:
            raise self.bad(f"{where}: its loss switches contradict each other: {quoted(found)}")
        return bool(next(iter(found.values()))) if found else None

    def reasoning(self, where: str, entry: Mapping[str, Any]) -> str:
        """The reasoning next to the text of an answer, empty if there is none. Raises SampleError."""
        found = {key: entry[key] for key in REASONING if entry.get(key) not in (None, "")}
        for key, value in found.items():
            if not isinstance(value, str):
                raise self.bad(f'{where}: "{key}" must be a string, in an assistant message')
        if len(set(found.values())) > 1:
            raise self.bad(f"{where}: different reasoning under {' and '.join(map(quoted, found))}")
        return next(iter(found.values()), "")

    def image(self, where: str, value: Any) -> ImagePart:
        """The image that a value names. where: its place in the record, for errors."""
        if isinstance(value, dict):
            self.check_keys(where, "part", value, (*_SOURCES, "image", *IMAGE_KEYS))
            inner = _source(value, "image")
            if inner is not None:
                return with_options(where, self.image(where, inner), value, self.bad)
        try:
            source = resolve_source(value, self.base_dir, self.sample_id, access=self.access)
        except SampleError as error:
            raise self.error(error.reason, f"{where}: {error.detail}") from error
        image = ImagePart(source)
        return with_options(where, image, value, self.bad) if isinstance(value, dict) else image

    def video(self, where: str, value: Any) -> VideoPart:
        """The video that a value names; a list holds its frames as images, in order."""
        if isinstance(value, dict):
            self.check_keys(where, "part", value, (*_SOURCES, "video", *VIDEO_KEYS))
            inner = _source(value, "video")
            if inner is not None:
                return with_options(where, self.video(where, inner), value, self.bad)
        if isinstance(value, list):
            if not value:
                raise self.bad(f"{where}: a video given as a list of frames needs at least one")
            frames = [self.image(f"{where}, frame {n}", frame) for n, frame in enumerate(value, 1)]
            if any(frame != ImagePart(frame.source) for frame in frames):
                raise self.bad(
                    f"{where}: min_pixels and max_pixels belong to the video, not to one of its frames"
                )
            return VideoPart(tuple(frame.source for frame in frames))
        try:
            source = resolve_source(value, self.base_dir, self.sample_id, kind="video", access=self.access)
        except SampleError as error:
            raise self.error(error.reason, f"{where}: {error.detail}") from error
        video = VideoPart(source)
        return with_options(where, video, value, self.bad) if isinstance(value, dict) else video

    def text(self, record: Mapping[str, Any], key: str) -> str:
        """A field that must be a string."""
        value = record.get(key)
        if not isinstance(value, str):
            raise self.bad(f'"{key}" must be a string, not {describe_value(value)}')
        return value

    def optional_text(self, record: Mapping[str, Any], key: str) -> str:
        """A field that may be left out or null; then it is empty."""
        return "" if record.get(key) is None else self.text(record, key)

    def switch(self, where: str, value: Any, default: bool) -> bool:
        """One of ERNIEKit's switches: 0 or 1, or the default if it is missing."""
        if value is None:
            return default
        if value not in (0, 1):
            raise self.bad(f"{where} must be 0 or 1, not {quoted(value)}")
        return bool(value)

    def with_system(self, record: Mapping[str, Any], messages: list[Message]) -> list[Message]:
        """The messages, after the system message of the record's column `system` if it has one."""
        system = self.optional_text(record, "system")
        if not system:
            return messages
        message = Message("system", (TextPart(system),), trained=False)
        if messages and messages[0].role == "system":
            if messages[0].parts == message.parts:
                return messages
            raise self.bad('two different system messages: in "system" and as the first message')
        return [message, *messages]


def _source(value: Mapping[str, Any], kind: str) -> Any:
    """The source under the name of its kind, as in Qwen-VL's data; None if it is under one of _SOURCES."""
    return value.get(kind) if all(value.get(key) is None for key in _SOURCES) else None


def describe_value(value: Any) -> str:
    """The type of a JSON value in words, and its content."""
    if value is None:
        return "null or missing"
    if isinstance(value, dict):
        return f"an object with {keys_of(value)}"
    if isinstance(value, str):
        kind = "a string of JSON text" if _is_json_text(value) else "a string"
        return f"{kind} ({quoted(value)})" if value else "an empty string"
    kinds = {list: "an array", bool: "a boolean", int: "a number", float: "a number"}
    return f"{kinds.get(type(value), 'something else')} ({quoted(value)})"


def keys_of(entry: Mapping[str, Any]) -> str:
    """The keys of an object, for errors."""
    if not entry:
        return "no keys"
    names = [quoted(key) for key in list(entry)[:_MOST_KEYS]]
    more = [f"{len(entry) - _MOST_KEYS} more"] if len(entry) > _MOST_KEYS else []
    return f"the {'key' if len(entry) == 1 else 'keys'} {', '.join([*names, *more])}"


def _is_json_text(text: str) -> bool:
    """Whether a text is a list or an object in JSON, as in cells of tables."""
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        check_json_values(text)
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def quoted(value: Any) -> str:
    """A value of the data for a message: short and printable."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "..."
