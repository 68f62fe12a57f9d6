"""The positions of media among the texts of ERNIEKit's multimodal samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from erniekit.data.chat.conversation import MediaKind, Part, VideoPart
from erniekit.data.formats.fields.context import SampleContext, describe_value, quoted
from erniekit.data.formats.fields.media_options import IMAGE_KEYS, VIDEO_KEYS, with_options

_LISTS: dict[str, MediaKind] = {"image_info": "image", "video_info": "video"}
_SPOKEN = ("asr", "subtitles")
# Sizes are read from the images instead.
_KEYS = (
    "image_url",
    "matched_text_index",
    "image_type",
    "video_uid",
    "image_width",
    "image_height",
    *_SPOKEN,
)
_TIMES = ("time_stamp", "timestamp")


@dataclass(slots=True)
class _Entry:
    """One entry of image_info or video_info, and the index of the text that follows it."""

    where: str
    kind: MediaKind
    value: dict[str, Any]
    text: int


@dataclass(slots=True)
class _Frames:
    """A video given as images of its frames."""

    text: int
    where: str
    sources: list[str | bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


def placed_media(record: dict[str, Any], texts: int, sample: SampleContext) -> dict[int, tuple[Part, ...]]:
    """The media of a record by the index of the text that follows them, in order. texts: number of texts.

    Entries of image_info with image_type "video" and the same video_uid are the frames of one video, which is placed
    where its first frame is. Raises SampleError.
    """
    lists = {key: _entries(record, key, sample) for key in _LISTS}
    if record.get("order"):
        entries = _ordered(record["order"], lists, texts, sample)
    elif all(lists.values()):
        raise sample.bad('with both "image_info" and "video_info" a sample needs "order"')
    else:
        entries = [
            _matched(key, number, value, texts, sample)
            for key in _LISTS
            for number, value in enumerate(lists[key])
        ]
    placed: dict[int, list[Part | _Frames]] = {}
    frames: dict[Any, _Frames] = {}
    for entry in entries:
        place = placed.setdefault(entry.text, [])
        part = _part(entry, frames, sample)
        if not any(part is other for other in place):
            place.append(part)
    return {text: tuple(_finished(part, sample) for part in parts) for text, parts in placed.items()}


def _entries(record: dict[str, Any], key: str, sample: SampleContext) -> list[dict[str, Any]]:
    entries = record.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise sample.bad(f'"{key}" must be a list, not {describe_value(entries)}')
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not entry.get("image_url"):
            raise sample.bad(
                f'{key}[{number}] must be an object with "image_url", not {describe_value(entry)}'
            )
    return entries


def _matched(key: str, number: int, value: dict[str, Any], texts: int, sample: SampleContext) -> _Entry:
    where = f"{key}[{number}]"
    index = value.get("matched_text_index")
    index = 0 if index is None else index
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < texts:
        raise sample.bad(f"{where}: matched_text_index must be 0 to {texts - 1}, not {quoted(index)}")
    return _Entry(where, _LISTS[key], value, index)


def _ordered(
    order: Any, lists: dict[str, list[dict[str, Any]]], texts: int, sample: SampleContext
) -> list[_Entry]:
    """The media in the order of the record, which must name every text and medium once."""
    types, indices = (order.get("type"), order.get("index")) if isinstance(order, dict) else (None, None)
    if not isinstance(types, list) or not isinstance(indices, list) or len(types) != len(indices):
        raise sample.bad('"order" must have two lists of the same length, "type" and "index"')
    counts = {"text": texts} | {kind: len(lists[key]) for key, kind in _LISTS.items()}
    keys = {kind: key for key, kind in _LISTS.items()}
    entries: list[_Entry] = []
    seen: set[tuple[str, int]] = set()
    next_text = 0
    for number, (kind, index) in enumerate(zip(types, indices, strict=True)):
        where = f'"order", entry {number}'
        if not isinstance(kind, str) or kind not in counts:
            raise sample.bad(f'{where}: type must be "text", "image" or "video", not {quoted(kind)}')
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < counts[kind]:
            raise sample.bad(f"{where}: there is no {kind} {quoted(index)}, only {counts[kind]} of them")
        if (kind, index) in seen or (kind == "text" and index != next_text):
            raise sample.bad(f"{where}: {kind} {index} is out of turn; texts come in order, everything once")
        seen.add((kind, index))
        if kind == "text":
            next_text += 1
        elif next_text == texts:
            raise sample.bad(f"{where}: {kind} {index} comes after the last text")
        else:
            media_kind: MediaKind = "image" if kind == "image" else "video"
            key = keys[media_kind]
            entries.append(_Entry(f"{key}[{index}]", media_kind, lists[key][index], next_text))
    if len(seen) != sum(counts.values()):
        raise sample.bad(f'"order" names {len(seen)} texts and media, the sample has {sum(counts.values())}')
    return entries


def _part(entry: _Entry, frames: dict[Any, _Frames], sample: SampleContext) -> Part | _Frames:
    """The part for one entry; for a frame, the video that it belongs to."""
    for key in _SPOKEN:
        if entry.value.get(key):
            raise sample.error("not supported", f'{entry.where}: the "{key}" of a video is not supported')
    source = entry.value["image_url"]
    kind = entry.value.get("image_type")
    is_frame = entry.kind == "image" and kind == "video"
    options = VIDEO_KEYS if entry.kind == "video" else _TIMES if is_frame else IMAGE_KEYS
    sample.check_keys(entry.where, "part", entry.value, (*_KEYS, *options))
    if entry.kind == "video":
        return with_options(entry.where, sample.video(entry.where, source), entry.value, sample.bad)
    image = sample.image(entry.where, source)
    if kind in (None, "image"):
        return with_options(entry.where, image, entry.value, sample.bad)
    if kind != "video":
        raise sample.bad(f'{entry.where}: image_type must be "image" or "video", not {quoted(kind)}')
    uid = entry.value.get("video_uid")
    if not isinstance(uid, str | int):
        raise sample.bad(f'{entry.where}: a frame of a video needs "video_uid", a string or number')
    video = frames.setdefault(uid, _Frames(entry.text, entry.where))
    if video.text != entry.text:
        raise sample.bad(f"{entry.where}: the frames of video {quoted(uid)} are before different texts")
    video.sources.append(image.source)
    video.times += [entry.value[key] for key in _TIMES if entry.value.get(key) is not None][:1]
    return video


def _finished(part: Part | _Frames, sample: SampleContext) -> Part:
    if not isinstance(part, _Frames):
        return part
    if part.times and len(part.times) != len(part.sources):
        raise sample.bad(
            f"{part.where}: {len(part.times)} of the {len(part.sources)} frames of its video have a time: give all or "
            "none"
        )
    return with_options(
        part.where, VideoPart(tuple(part.sources)), {"timestamps": part.times or None}, sample.bad
    )
