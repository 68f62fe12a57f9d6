"""An image or video of a document: its number of tokens, from the header, and its patches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from erniekit.config import DataConfig
from erniekit.data.chat.conversation import ImagePart, SampleError, VideoPart
from erniekit.data.media.frames import VideoInfo
from erniekit.data.media.images import MAX_PIXELS, image_size, open_image, source_name
from erniekit.data.media.patches import (
    PIXELS_APART,
    ImageSpec,
    Patches,
    image_grid,
    limits,
    num_tokens,
    patchify,
)
from erniekit.data.media.video import (
    VideoSpec,
    frames_between,
    patchify_video,
    sample_frames,
    video_grid,
    video_info,
    video_tokens,
)
from erniekit.display.text import counted

Spec = TypeVar("Spec", ImageSpec, VideoSpec)
MAX_TOKENS = 1 << 19
"""Limit of the placeholders of a document. A sample's min_pixels may ask for any number of tokens."""


@dataclass(frozen=True, slots=True)
class MediaSpec:
    """How a checkpoint processes images and videos."""

    image: ImageSpec
    video: VideoSpec

    @classmethod
    def from_checkpoint(cls, directory: Path, data: DataConfig, seed: int = 0) -> MediaSpec:
        """Read both specs of a checkpoint; settings in `data` replace the checkpoint's. Raises CheckpointError,
        ConfigError."""
        image = ImageSpec.from_checkpoint(directory, data.min_pixels, data.max_pixels)
        return cls(image, VideoSpec.from_checkpoint(directory, data, seed))


@dataclass(frozen=True, slots=True)
class Media:
    """An image or video in a document.

    source: path or URL, encoded bytes, or the frames of a video; grid_thw: patches (t, h, w), with t = 1 for an image
    and the even number of frames for a video; start: index of the first placeholder, behind the start marker; tokens:
    number of placeholders, before the end marker; merge_size: patches per side of a token; frames: for a video, the
    numbers of the sampled frames in the file, () for an image; min_pixels, max_pixels: see `ImagePart` and `VideoPart`;
    times: for a video given as frames with known times, the time of each sampled frame in seconds.
    """

    source: str | bytes | tuple[str | bytes, ...]
    grid_thw: tuple[int, int, int]
    start: int
    tokens: int
    merge_size: int
    frames: tuple[int, ...] = ()
    min_pixels: int | None = None
    max_pixels: int | None = None
    times: tuple[float, ...] = ()

    @property
    def is_video(self) -> bool:
        """Whether this is a video."""
        return bool(self.frames)

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Tokens (t, h, w): a token covers two frames and merge_size x merge_size patches."""
        rows, columns = self.grid_thw[1] // self.merge_size, self.grid_thw[2] // self.merge_size
        return self.tokens // (rows * columns), rows, columns

    @property
    def num_patches(self) -> int:
        """Number of patches for the vision tower."""
        t, h, w = self.grid_thw
        return t * h * w


def measure(part: ImagePart | VideoPart, spec: MediaSpec, sample_id: str) -> Media:
    """The Media of an image or video, with start 0. Only reads the header. Raises SampleError."""
    try:
        if isinstance(part, ImagePart):
            image = _bounded(spec.image, part.min_pixels, part.max_pixels)
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
        spec_used: ImageSpec | VideoSpec = spec.image if isinstance(part, ImagePart) else spec.video
        if grid[1] * grid[2] * spec_used.patch_size**2 > MAX_PIXELS:
            raise ValueError(f"its min_pixels enlarges it to more than {MAX_PIXELS:,} pixels")
        if tokens > MAX_TOKENS:
            raise ValueError(f"it takes {tokens:,} tokens, more than {MAX_TOKENS:,}, the limit")
        return Media(
            *(part.source, grid, 0, tokens, spec_used.merge_size, frames),
            min_pixels=part.min_pixels,
            max_pixels=part.max_pixels,
            times=times,
        )
    except ValueError as error:
        kind, reason = ("image", "bad image") if isinstance(part, ImagePart) else ("video", "bad video")
        detail = f"the {kind} {source_name(part.source)} cannot be used: {error}"
        raise SampleError(sample_id, reason, detail) from error


def _video_spec(part: VideoPart, info: VideoInfo, spec: VideoSpec) -> VideoSpec:
    """The spec for a video: the model's, with the options of the sample. Raises ValueError."""
    is_file = info.fps > 0
    exact = part.min_frames is not None and part.min_frames == part.max_frames
    if is_file and exact and part.fps is not None:
        raise ValueError("it sets both fps and the number of frames: keep one of them")
    if is_file and part.times:
        raise ValueError("timestamps are only for frames given as images, but it is a video file")
    least, most = limits(part.min_frames, part.max_frames, (spec.min_frames, spec.max_frames), apart=1)
    fps = part.fps if is_file and part.fps is not None else spec.fps
    return replace(
        _bounded(spec, part.min_pixels, part.max_pixels), fps=fps, min_frames=least, max_frames=most
    )


def _frames(part: VideoPart, info: VideoInfo, spec: VideoSpec) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(numbers of the frames to use, their times unless the file determines them). Raises ValueError."""
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
    """(first, count) of the frames to sample from. Raises ValueError."""
    if part.start is None and part.end is None:
        return 0, info.frames
    if part.times:
        end = math.inf if part.end is None else part.end
        inside = [number for number, time in enumerate(part.times) if (part.start or 0) <= time <= end]
        if not inside:
            raise ValueError(f"no timestamp is between {part.start or 0:g} and {end:g} seconds")
        return inside[0], len(inside)
    rate = info.fps or part.fps
    if rate is None:
        raise ValueError("an interval of frames given as images needs fps, the frames taken per second")
    return frames_between(part.start, part.end, info.frames, rate)


def _key(source: str | bytes | tuple[str | bytes, ...]) -> str:
    """The seed of a video's random frames: its name without the directory, since data may be moved."""
    if isinstance(source, tuple):
        return " ".join(map(_key, source))
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).hexdigest()
    return Path(source).name


def decode(media: Sequence[Media], sample_id: str, spec: MediaSpec | None) -> list[Patches]:
    """Decode the images and videos of a document to patches, in order.

    spec: None for a text model, which has no media. Raises SampleError if an image or video cannot be decoded.
    """
    if not media:
        return []
    assert spec is not None, "only an encoder with a MediaSpec makes documents with media"
    return [_decode(item, spec, sample_id) for item in media]


def _decode(item: Media, spec: MediaSpec, sample_id: str) -> Patches:
    if item.is_video:
        video = _bounded(spec.video, item.min_pixels, item.max_pixels)
        return patchify_video(item.source, item.frames, item.grid_thw, video, sample_id, item.times)
    assert not isinstance(item.source, tuple), "only a video is given as frames"
    try:
        patches, grid = patchify(
            open_image(item.source, sample_id), _bounded(spec.image, item.min_pixels, item.max_pixels)
        )
    except ValueError:  # the file has changed to a shape that cannot be resized
        grid = None
    if grid != item.grid_thw:
        detail = f"the image {source_name(item.source)} has changed since the data was read"
        raise SampleError(sample_id, "bad image", detail)
    return patches


def _bounded(spec: Spec, min_pixels: int | None, max_pixels: int | None) -> Spec:
    """A copy of the spec with the size bounds of one image or video. None keeps a bound of the spec.

    Raises ValueError for bounds that allow no token.
    """
    if min_pixels is None and max_pixels is None:
        return spec
    side = spec.patch_size * spec.merge_size
    if max_pixels is not None and max_pixels < side**2:
        raise ValueError(f"its max_pixels ({max_pixels}) must allow one token of {side}x{side} pixels")
    least, most = limits(min_pixels, max_pixels, (spec.min_pixels, spec.max_pixels), PIXELS_APART)
    return replace(spec, min_pixels=least, max_pixels=most)
