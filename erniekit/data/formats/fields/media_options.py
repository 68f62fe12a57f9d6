"""Options for reading an image or video of a sample, under the keys of Qwen-VL and FastDeploy."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

from erniekit.data.chat.conversation import ImagePart, SampleError, VideoPart

Bad = Callable[[str], SampleError]
"""Makes the error of a sample from its description."""
Media = TypeVar("Media", bound=ImagePart | VideoPart)

_PIXELS = {"min_pixels": ("min_pixels",), "max_pixels": ("max_pixels",)}
# The keys that set each field of a VideoPart; "frames" sets min_frames and max_frames.
_VIDEO = {
    **_PIXELS,
    "fps": ("fps", "sample_fps"),
    "frames": ("nframes", "num_frames", "target_frames"),
    "min_frames": ("min_frames",),
    "max_frames": ("max_frames",),
    "start": ("video_start",),
    "end": ("video_end",),
}
_SECONDS = ("start", "end")
_WHOLE = ("frames", "min_frames", "max_frames", "min_pixels", "max_pixels")
_TIMES = "timestamps"
# Frames per second of the original video. Ignored if fps, the rate at which frames were sampled, is known.
_RAW_FPS = "raw_fps"
IMAGE_KEYS = tuple(_PIXELS)
VIDEO_KEYS = (*(key for keys in _VIDEO.values() for key in keys), _RAW_FPS, _TIMES)


def with_options(where: str, media: Media, entry: Mapping[str, Any], bad: Bad) -> Media:
    """An image or video with the options in `entry`; where: its place in the record. bad: makes the error to raise."""
    keys = _PIXELS if isinstance(media, ImagePart) else _VIDEO
    found: dict[str, Any] = {}
    for field, names in keys.items():
        values = {name: _number(where, name, entry[name], field, bad) for name in names if _said(entry, name)}
        if len(set(values.values())) > 1:
            raise bad(f"{where}: {' and '.join(values)} contradict each other")
        if values:
            found[field] = next(iter(values.values()))
    if isinstance(media, VideoPart):
        if _said(entry, _TIMES):
            found["times"] = _times(where, entry[_TIMES], bad)
        if _said(entry, _RAW_FPS) and not found.keys() & {"fps", "times"}:
            raise bad(
                f'{where}: "{_RAW_FPS}" alone does not tell how far apart the frames are: set "fps", the number of '
                "frames taken per second"
            )
        if "frames" in found:
            if found.keys() & {"min_frames", "max_frames"}:
                raise bad(f"{where}: give either the number of frames or min_frames and max_frames")
            found["min_frames"] = found["max_frames"] = found.pop("frames")
    for least, most in (("min_pixels", "max_pixels"), ("min_frames", "max_frames")):
        if least in found and most in found and found[least] > found[most]:
            raise bad(f"{where}: {least} ({found[least]}) is more than {most} ({found[most]})")
    if "end" in found and found["end"] <= found.get("start", 0):
        raise bad(f"{where}: video_end ({found['end']:g}) must be after video_start")
    return replace(media, **found) if found else media


def options_of(media: ImagePart | VideoPart) -> dict[str, Any]:
    """The keys that `with_options` reads back."""
    keys = _PIXELS if isinstance(media, ImagePart) else {**_VIDEO, "times": (_TIMES,)}
    found = {names[0]: getattr(media, field, None) for field, names in keys.items()}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in found.items()
        if value not in (None, ())
    }


def _said(entry: Mapping[str, Any], key: str) -> bool:
    return entry.get(key) is not None and entry[key] != ""


def _number(where: str, key: str, value: Any, field: str, bad: Bad) -> float | int:
    """A positive number (or 0 for a time), which may be text, as in Qwen's samples."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    whole = field in _WHOLE
    is_right = math.isfinite(number) and number >= 0 and (number > 0 or field in _SECONDS)
    if not is_right or (whole and not number.is_integer()):
        kind = "a whole number" if whole else "a number of seconds" if field in _SECONDS else "a number"
        least = "0 or more" if field in _SECONDS else "more than 0"
        raise bad(f'{where}: "{key}" must be {kind}, {least}, not {value!r:.80}')
    return int(number) if whole else number


def _times(where: str, value: Any, bad: Bad) -> tuple[float, ...]:
    if not isinstance(value, list) or not value:
        raise bad(f'{where}: "{_TIMES}" must be a list with the second of each frame')
    times = tuple(float(_number(where, _TIMES, time, "start", bad)) for time in value)
    if any(later < time for time, later in pairwise(times)):
        raise bad(f'{where}: "{_TIMES}" must be in ascending order')
    return times
