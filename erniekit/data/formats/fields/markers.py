"""The marks `<image>` and `<video>` in users' texts, which are replaced by the media that a record lists.

A tag around a path (`<img>a.png</img>` as in Qwen-VL's data, `<image>a.png</image>` or `<video>a.mp4</video>`) is
replaced by the image or video with that path.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar

from erniekit.data.chat.conversation import ImagePart, MediaKind, Part, TextPart, VideoPart
from erniekit.data.formats.fields.context import SampleContext, describe_value, quoted
from erniekit.data.formats.fields.keys import NO_AUDIO
from erniekit.display.text import counted

Media = TypeVar("Media", ImagePart, VideoPart)
_KINDS: tuple[MediaKind, ...] = ("image", "video")
# Keys of a message that list its media.
MESSAGE_MEDIA_KEYS = ("image", "images", "video", "videos")
REJECTED_MEDIA_KEYS = tuple(f"rejected_{key}" for key in MESSAGE_MEDIA_KEYS)
# Keys of a record that list its media, and the objects in them (see `objects`); "audios" is rejected by name.
MEDIA_KEYS = (*MESSAGE_MEDIA_KEYS, "audios", "objects")
_MARK = re.compile(
    # The label and the line end belong to Qwen-VL's tag; the template writes its own labels.
    r"(?P<label>Picture [0-9]+: ?)?<img>(?P<img>[^<>\n]+)</img>(?(label)\n?)"
    r"|<(?P<kind>image|video)>(?:(?P<path>[^<>\n]+)</(?P=kind)>)?"
)
_SCHEMES = ("http://", "https://", "file://", "data:")
_SUFFIXES: dict[MediaKind, tuple[str, ...]] = {
    "image": (
        *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".jp2"),
    ),
    "video": (
        *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".gif"),
    ),
}


def has_marks(text: str) -> bool:
    """Whether a user's text contains marks or tags."""
    return _MARK.search(text) is not None


class MarkedMedia:
    """The media of a record's columns `images` and `videos` (or `image`, `video`), taken in order by marks.

    A column is a list, or a single source; in `videos`, a list inside the list holds the frames of one video.
    rejected: reads the media of the rejected answer: `rejected_images` and `rejected_videos` if the record has them.
    where: the place of a message that lists its own media. Raises SampleError.
    """

    def __init__(
        self, record: dict[str, Any], sample: SampleContext, *, rejected: bool = False, where: str = ""
    ) -> None:
        if record.get("audios"):
            raise sample.error("not supported", f'"audios" {NO_AUDIO}')
        self._sample = sample
        self._where = f"{where}: " if where else ""
        self._keys: dict[MediaKind, str] = {kind: _key(record, kind, rejected) for kind in _KINDS}
        for kind in _KINDS:
            if record.get(kind) and record.get(f"{kind}s"):
                sample.notice(f'key "{kind}" is not read if "{kind}s" is present')
        self._columns: dict[MediaKind, list[ImagePart] | list[VideoPart]] = {
            "image": _column(record, self._keys["image"], "image", self._where, sample.image, sample),
            "video": _column(record, self._keys["video"], "video", self._where, sample.video, sample),
        }
        self._marks: dict[MediaKind, int] = {"image": 0, "video": 0}

    def split(self, text: str) -> tuple[Part, ...]:
        """A user's text with the media at its marks."""
        parts: list[Part] = []
        end = 0
        for match in _MARK.finditer(text):
            found = self._marked(match)
            if found is None:
                continue
            if match.start() > end:
                parts.append(TextPart(text[end : match.start()]))
            part, end = found
            # With too few media `check` reports both numbers.
            if part is not None:
                parts.append(part)
        if end < len(text) or not end:
            parts.append(TextPart(text[end:]))
        return tuple(parts)

    def _marked(self, match: re.Match[str]) -> tuple[ImagePart | VideoPart | None, int] | None:
        """(image or video, position after it) of a match; None if the match is plain text."""
        path, kind = match["img"], match["kind"]
        if path is not None:
            if not _is_source(path, "image") and "/" not in path:
                return None
            return self._sample.image(quoted(match.group()), path.strip()), match.end()
        own: MediaKind = "image" if kind == "image" else "video"
        path = match["path"]
        if path is None or not _is_source(path, own):
            return self.take(own), match.start() + len(f"<{own}>")
        read = self._sample.image if own == "image" else self._sample.video
        return read(quoted(match.group()), path.strip()), match.end()

    def take(self, kind: MediaKind) -> ImagePart | VideoPart | None:
        """The next medium of a column; None if none is left."""
        number, column = self._marks[kind], self._columns[kind]
        self._marks[kind] += 1
        return column[number] if number < len(column) else None

    def in_place_of(self, other: MarkedMedia, part: Part) -> Part:
        """The part of the rejected prompt that replaces `part` of the chosen prompt; other: the chosen media."""
        if not isinstance(part, ImagePart | VideoPart):
            return part
        kind: MediaKind = "image" if isinstance(part, ImagePart) else "video"
        if self._keys[kind] == other._keys[kind]:
            self._marks[kind] = other._marks[kind]
            return part
        return self.take(kind) or part

    def rest(self) -> list[Part]:
        """All media that are not used yet, images first."""
        return [
            part
            for kind in _KINDS
            for _ in self._columns[kind][self._marks[kind] :]
            if (part := self.take(kind)) is not None
        ]

    @property
    def marks(self) -> int:
        """Number of media requested so far."""
        return sum(self._marks.values())

    def has(self, kind: MediaKind) -> bool:
        """Whether the record lists media of this kind."""
        return bool(self._columns[kind])

    def check(self) -> None:
        """Raises SampleError unless the numbers of marks and media are equal."""
        for kind in _KINDS:
            marks, listed = self._marks[kind], len(self._columns[kind])
            if marks != listed:
                detail = (
                    f"{self._where}{counted(marks, f'<{kind}> mark')} in users' and tools' texts, "
                    f'{counted(listed, kind)} in "{self._keys[kind]}": the numbers must be equal (for a literal '
                    f"<{kind}> use format messages and give the content as a list of parts)"
                )
                raise self._sample.error(f"{kind}s do not match", detail)


def _is_source(text: str, kind: MediaKind) -> bool:
    """Whether a text inside a tag is a path or URL."""
    text = text.strip().lower()
    return text.startswith(_SCHEMES) or PurePosixPath(text).suffix in _SUFFIXES[kind]


def _key(record: dict[str, Any], kind: MediaKind, rejected: bool) -> str:
    """The column with the media of a kind: the plural, unless only the singular has values."""
    keys: tuple[str, ...] = (f"{kind}s", kind)
    if rejected:
        keys = (f"rejected_{kind}s", f"rejected_{kind}", *keys)
    return next((key for key in keys if record.get(key)), f"{kind}s")


def _column(
    record: dict[str, Any],
    key: str,
    kind: MediaKind,
    where: str,
    read: Callable[[str, Any], Media],
    sample: SampleContext,
) -> list[Media]:
    value = record.get(key)
    if value is None or value == "":
        return []
    if isinstance(value, str | dict):
        return [read(f'{where}"{key}"', value)]
    if not isinstance(value, list):
        raise sample.bad(f'{where}"{key}" must be a list of {kind}s, not {describe_value(value)}')
    return [read(f'{where}"{key}", {kind} {number}', item) for number, item in enumerate(value, 1)]
