"""The marks `<image>` and `<video>` in users' texts, which stand for the media that a record lists apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from erniekit.data.conversation import ImagePart, Part, TextPart, VideoPart
from erniekit.data.formats.context import SampleContext, describe

Kind = Literal["image", "video"]
Media = TypeVar("Media", ImagePart, VideoPart)
_KINDS: tuple[Kind, ...] = ("image", "video")
_NOUN = {"image": "picture", "video": "video"}
# Keys of a record that list its media; "audios" is refused by name.
MEDIA_KEYS = ("image", "images", "video", "videos", "audios")
MARK = re.compile("<(image|video)>")


class MarkedMedia:
    """The media of a record's columns `images` and `videos` (or `image`, `video`), taken in order by marks.

    A column is a list, or a single source; in `videos` a list inside the list holds the frames of one video.
    Raises SampleError.
    """

    def __init__(self, record: dict[str, Any], sample: SampleContext) -> None:
        if record.get("audios"):
            raise sample.error("not supported", '"audios": these models do not hear')
        self._sample = sample
        self._columns: dict[Kind, list[ImagePart] | list[VideoPart]] = {
            "image": _column(record, "image", sample.image, sample),
            "video": _column(record, "video", sample.video, sample),
        }
        self._marks: dict[Kind, int] = {"image": 0, "video": 0}

    def split(self, text: str) -> tuple[Part, ...]:
        """A user's text with the media in the places of its marks."""
        parts: list[Part] = []
        end = 0
        for match in MARK.finditer(text):
            if match.start() > end:
                parts.append(TextPart(text[end : match.start()]))
            end = match.end()
            part = self.take("image" if match.group(1) == "image" else "video")
            # With too few media `check` is the error, which tells both numbers.
            if part is not None:
                parts.append(part)
        if end < len(text) or not end:
            parts.append(TextPart(text[end:]))
        return tuple(parts)

    def take(self, kind: Kind) -> ImagePart | VideoPart | None:
        """The next of a column; None where there is none left."""
        number, column = self._marks[kind], self._columns[kind]
        self._marks[kind] += 1
        return column[number] if number < len(column) else None

    def has(self, kind: Kind) -> bool:
        """Whether the record lists media of this kind."""
        return bool(self._columns[kind])

    def check(self) -> None:
        """Raises SampleError unless there were as many marks as media."""
        for kind in _KINDS:
            marks, listed = self._marks[kind], len(self._columns[kind])
            if marks != listed:
                detail = (
                    f"{marks} <{kind}> mark(s) in the users' texts, {listed} {_NOUN[kind]}(s) in "
                    f'"{kind}s": the numbers must be equal (for a literal <{kind}> use format messages and '
                    "give the content as a list of parts)"
                )
                raise self._sample.error(f"{kind}s do not match", detail)


def _column(
    record: dict[str, Any], kind: Kind, read: Callable[[str, Any], Media], sample: SampleContext
) -> list[Media]:
    key = kind if record.get(f"{kind}s") is None else f"{kind}s"
    value = record.get(key)
    if value is None or value == "":
        return []
    if isinstance(value, str | dict):
        return [read(f'"{key}"', value)]
    if not isinstance(value, list):
        raise sample.bad(f'"{key}" must be a list of {_NOUN[kind]}s, it is {describe(value)}')
    return [read(f'"{key}", {_NOUN[kind]} {number}', item) for number, item in enumerate(value, 1)]
