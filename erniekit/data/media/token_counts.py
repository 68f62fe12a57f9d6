"""How many tokens an image or a video takes, known without decoding it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

from erniekit.data.chat.conversation import ImagePart, SampleError, VideoPart
from erniekit.data.media.frames import VideoInfo
from erniekit.data.media.images import image_size, source_name
from erniekit.data.media.item import Media
from erniekit.data.media.patches import image_grid, limits, num_tokens
from erniekit.data.media.spec import MediaSpec, bounded
from erniekit.data.media.video import (
    VideoSpec,
    frames_between,
    sample_frames,
    video_grid,
    video_info,
    video_tokens,
)
from erniekit.display.text import counted


def measure(part: ImagePart | VideoPart, spec: MediaSpec, sample_id: str) -> Media:
    """An image or video that stands nowhere yet (start 0). Reads its header only. Raises SampleError."""
    try:
        if isinstance(part, ImagePart):
            image = bounded(spec.image, part.min_pixels, part.max_pixels)
            grid = image_grid(*image_size(part.source, sample_id), image)
            frames: tuple[int, ...] = ()
            times: tuple[float, ...] = ()
            tokens = num_tokens(grid, image)
        else:
            info = video_info(part.source, sample_id)
            video = _video_spec(part, info, spec.video)
            frames, times = _frames(part, info, video)
            grid = video_grid(info, frames, video)
            tokens = video_tokens(grid, video)
        merge_size = spec.image.merge_size if isinstance(part, ImagePart) else spec.video.merge_size
        return Media(
            *(part.source, grid, 0, tokens, merge_size, frames),
            min_pixels=part.min_pixels,
            max_pixels=part.max_pixels,
            times=times,
        )
    except ValueError as error:
        kind, reason = ("image", "bad image") if isinstance(part, ImagePart) else ("video", "bad video")
        detail = f"the {kind} {source_name(part.source)} cannot be used: {error}"
        raise SampleError(sample_id, reason, detail) from error


def _video_spec(part: VideoPart, info: VideoInfo, spec: VideoSpec) -> VideoSpec:
    """How this video is read: as the model wants it, but for what the sample says. Raises ValueError."""
    is_file = info.fps > 0
    exact = part.min_frames is not None and part.min_frames == part.max_frames
    if is_file and exact and part.fps is not None:
        raise ValueError("both fps and a number of frames are asked for: give one of them")
    if is_file and part.times:
        raise ValueError("timestamps are of frames given as images, and it is a video file")
    least, most = limits(part.min_frames, part.max_frames, (spec.min_frames, spec.max_frames), apart=1)
    fps = part.fps if is_file and part.fps is not None else spec.fps
    return replace(
        bounded(spec, part.min_pixels, part.max_pixels), fps=fps, min_frames=least, max_frames=most
    )


def _frames(part: VideoPart, info: VideoInfo, spec: VideoSpec) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(numbers of the frames to use, their times where these do not follow from a file). Raises ValueError."""
    if part.times and len(part.times) != info.frames:
        raise ValueError(
            f"it has {counted(info.frames, 'frame')} and {counted(len(part.times), 'timestamp')}"
        )
    first, count = _window(part, info)
    picked = sample_frames(replace(info, frames=count), spec, _key(part.source))
    frames = tuple(first + number for number in picked)
    if part.times:
        return frames, tuple(part.times[number] for number in frames)
    if not info.fps and part.fps is not None:
        return frames, tuple(number / part.fps for number in frames)
    return frames, ()


def _window(part: VideoPart, info: VideoInfo) -> tuple[int, int]:
    """(first, number) of the frames among which some are picked. Raises ValueError."""
    if part.start is None and part.end is None:
        return 0, info.frames
    if part.times:
        end = math.inf if part.end is None else part.end
        inside = [number for number, time in enumerate(part.times) if (part.start or 0) <= time <= end]
        if not inside:
            raise ValueError(f"none of its timestamps is from {part.start or 0:g} to {end:g} seconds")
        return inside[0], len(inside)
    rate = info.fps or part.fps
    if rate is None:
        raise ValueError("a part of frames given as images needs fps, how many were taken per second")
    return frames_between(part.start, part.end, info.frames, rate)


def _key(source: str | bytes | tuple[str | bytes, ...]) -> str:
    """What random frames of a video hang on: its name without the directory, since data may be moved."""
    if isinstance(source, tuple):
        return " ".join(map(_key, source))
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).hexdigest()
    return Path(source).name
