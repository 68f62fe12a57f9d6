"""Samples the frames of videos and turns them into patches.

Agrees with transformers' models.ernie4_5_vl_moe.video_processing_ernie4_5_vl_moe (Ernie4_5_VLMoeVideoProcessor) in the
sampled frames, the timestamps drawn on them, their size and the order of patches.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from erniekit.config import DataConfig
from erniekit.config.choices import VideoSampling
from erniekit.data.chat.conversation import SampleError
from erniekit.data.media.frames import VideoInfo, VideoSource, load_frames, video_info
from erniekit.data.media.images import source_name
from erniekit.data.media.patches import (
    CHANNELS,
    MAX_AREA,
    MAX_PATCH,
    MERGE_SIZE,
    PATCH_SIZE,
    PIXELS_APART,
    TOKEN_PIXELS,
    Patches,
    fill_patches,
    image_grid,
    limits,
    read_processor,
)
from erniekit.errors import CheckpointError, ConfigError
from erniekit.json_fields import read_flag, read_integer, read_number, read_object
from erniekit.local_files import read_json_object

FONT = Path(__file__).parent / "fonts" / "Roboto-Regular.ttf"
# Frames per token.
_TEMPORAL = 2


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """How a checkpoint processes videos. The defaults are ERNIE 4.5's processor's.

    fps: frames to sample per second of the video; min_frames, max_frames: bounds of their number (the last frame is
    repeated to make it even, so an odd max_frames may be exceeded by one); sampling: the frame to take from each
    interval; timestamps: whether to draw its time on each frame; min_pixels, max_pixels: bounds of a frame's area after
    resizing; patch_size, merge_size: as in `ImageSpec`; seed: for sampling "random".
    """

    fps: float = 2.0
    min_frames: int = 16
    max_frames: int = 180
    sampling: VideoSampling = "leading"
    timestamps: bool = True
    min_pixels: int = 299 * TOKEN_PIXELS
    max_pixels: int = 1196 * TOKEN_PIXELS
    patch_size: int = PATCH_SIZE
    merge_size: int = MERGE_SIZE
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ConfigError(f"data.video_fps ({self.fps}) must be more than 0")
        if self.sampling not in get_args(VideoSampling):
            known = ", ".join(get_args(VideoSampling))
            raise ConfigError(f"data.video_sampling ({self.sampling}) must be one of {known}")
        for name, least, most in (
            ("frames", self.min_frames, self.max_frames),
            ("pixels", self.min_pixels, self.max_pixels),
        ):
            if not 1 <= least <= most:
                raise ConfigError(
                    f"data.video_min_{name} ({least}) must be at least 1 and at most data.video_max_{name} "
                    f"({most})"
                )
        side = self.patch_size * self.merge_size
        if self.max_pixels < side**2:
            least_token = f"one token of {side}x{side} pixels"
            raise ConfigError(f"data.video_max_pixels ({self.max_pixels}) must allow {least_token}")

    @property
    def patch_dim(self) -> int:
        """Values in one patch."""
        return CHANNELS * self.patch_size**2

    @classmethod
    def from_checkpoint(cls, directory: Path, data: DataConfig | None = None, seed: int = 0) -> VideoSpec:
        """Read the spec of a checkpoint directory; the settings data.video_* replace the checkpoint's.

        Reads processor_config.json ("video_processor") or video_preprocessor_config.json, which transformers writes.
        Without these files, uses the defaults, with the patch sizes of preprocessor_config.json. If one bound of `data`
        crosses the checkpoint's opposite bound, the latter changes too: see `limits`. Raises CheckpointError,
        ConfigError.
        """
        data = data or DataConfig.without_sources()
        usual = cls()
        path, found = _read_settings(Path(directory))
        try:
            size = read_object(found, "size") if found.get("size") else {}
            if found.get("temporal_patch_size", _TEMPORAL) != _TEMPORAL:
                raise CheckpointError(f"{path}: temporal_patch_size must be {_TEMPORAL}")
            own_frames = (
                read_integer(found, "min_frames", usual.min_frames),
                read_integer(found, "max_frames", usual.max_frames),
            )
            least = read_integer(size, "shortest_edge", usual.min_pixels, most=MAX_AREA)
            most = read_integer(size, "longest_edge", usual.max_pixels, most=MAX_AREA)
            own_pixels = (
                read_integer(found, "min_pixels", least, most=MAX_AREA),
                read_integer(found, "max_pixels", most, most=MAX_AREA),
            )
            own_fps = read_number(found, "fps", usual.fps, most=1e6)
            own_timestamps = usual.timestamps
            if found.get("draw_on_frames") is not None:
                own_timestamps = read_flag(found, "draw_on_frames", usual.timestamps)
            patch_size = read_integer(found, "patch_size", usual.patch_size, most=MAX_PATCH)
            merge_size = read_integer(found, "merge_size", usual.merge_size, most=MAX_PATCH)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        frames = limits(data.video_min_frames, data.video_max_frames, own_frames, apart=1)
        pixels = limits(data.video_min_pixels, data.video_max_pixels, own_pixels, PIXELS_APART)
        return cls(
            fps=own_fps if data.video_fps is None else data.video_fps,
            min_frames=frames[0],
            max_frames=frames[1],
            sampling=data.video_sampling,
            timestamps=own_timestamps if data.video_timestamps is None else data.video_timestamps,
            min_pixels=pixels[0],
            max_pixels=pixels[1],
            patch_size=patch_size,
            merge_size=merge_size,
            seed=seed,
        )


def _read_settings(directory: Path) -> tuple[Path, dict[str, Any]]:
    nested = directory / "processor_config.json"
    if nested.is_file():
        found = read_json_object(nested).get("video_processor")
        if isinstance(found, dict):
            return nested, found
    own = directory / "video_preprocessor_config.json"
    if own.is_file():
        return own, read_json_object(own)
    path, found = read_processor(directory)
    # All other keys apply to images only.
    return path, {key: found[key] for key in ("patch_size", "merge_size") if key in found}


def sample_frames(info: VideoInfo, spec: VideoSpec, key: str) -> tuple[int, ...]:
    """The numbers of the frames to use, ascending; an even count (the last may be repeated).

    Takes one frame from each of several equal intervals. key: identifies the video; random frames depend on it and
    spec.seed alone.
    """
    wanted = info.frames / (info.fps or spec.fps) * spec.fps
    wanted = min(max(wanted, spec.min_frames), spec.max_frames, info.frames)
    step = info.frames / wanted
    # Rounded to float32 as in the reference: it matters if a product is slightly below a whole number.
    starts = (np.arange(math.ceil(info.frames / step)) * step).astype(np.float32).astype(np.int64)
    starts = starts[starts < info.frames]
    widths = np.append(starts[1:], info.frames) - starts
    if spec.sampling == "middle":
        starts = starts + (widths - 1) // 2
    elif spec.sampling == "random":
        digest = hashlib.sha256(f"{spec.seed}:{key}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16])))
        starts = starts + (generator.random(len(starts)) * widths).astype(np.int64)
    frames = tuple(starts.tolist())
    return frames if len(frames) % _TEMPORAL == 0 else (*frames, frames[-1])


def frames_between(start: float | None, end: float | None, total: int, fps: float) -> tuple[int, int]:
    """(first, count) of the frames between `start` and `end` in seconds, of `total` frames at `fps` per second.

    Raises ValueError if there is none.
    """
    # Compensate rounding errors: 0.7 s at 10 frames per second is frame 7.
    first = 0 if start is None else math.ceil(round(start * fps, 6))
    last = total - 1 if end is None else min(math.floor(round(end * fps, 6)), total - 1)
    if first > last:
        window = f"from second {start or 0:g}" + ("" if end is None else f" to second {end:g}")
        raise ValueError(f"it has no frame {window}: it is {total / fps:.2f} seconds long")
    return first, last - first + 1


def video_grid(info: VideoInfo, frames: tuple[int, ...], spec: VideoSpec) -> tuple[int, int, int]:
    """The grid of a video, (frames, h, w), in patches. Raises ValueError as `smart_resize`."""
    _, rows, columns = image_grid(info.height, info.width, spec)
    return len(frames), rows, columns


def video_tokens(grid_thw: tuple[int, int, int], spec: VideoSpec) -> int:
    """The number of placeholder tokens of a video with this grid. A token covers two frames."""
    t, h, w = grid_thw
    return t * h * w // (spec.merge_size**2 * _TEMPORAL)


def patchify_video(
    source: VideoSource,
    frames: tuple[int, ...],
    grid_thw: tuple[int, int, int],
    spec: VideoSpec,
    sample_id: str,
    times: tuple[float, ...] = (),
) -> Patches:
    """The patches of a video, uint8 [T * h * w, patch_dim]: frame after frame, each in the order of `patchify`.

    times: the time of each frame in seconds, unless its number and the file's frame rate determine it. Decodes one
    frame at a time. Raises SampleError, also if the file has changed since frames and grid_thw were computed.
    """
    info = video_info(source, sample_id)
    try:
        same = frames[-1] < info.frames and video_grid(info, frames, spec) == grid_thw
    except ValueError:
        same = False
    if not same:
        detail = f"the video {source_name(source)} has changed since the data was read"
        raise SampleError(sample_id, "bad video", detail)
    per_frame = grid_thw[1] * grid_thw[2]
    patches = np.empty((len(frames) * per_frame, spec.patch_dim), np.uint8)
    for place, image in enumerate(load_frames(source, frames, sample_id)):
        if spec.timestamps:
            draw_timestamp(image, times[place] if times else frames[place] / (info.fps or spec.fps))
        fill_patches(patches[place * per_frame : (place + 1) * per_frame], image, grid_thw, spec)
    return patches


def draw_timestamp(image: Image.Image, seconds: float) -> None:
    """Draw "time: HH:MM:SS.ss" in the upper left corner of a frame, black with a white outline.

    As in the reference, this happens before resizing, and the text height is a tenth of the shorter side.
    """
    text = f"time: {int(seconds // 3600):02d}:{int(seconds % 3600 // 60):02d}:{seconds % 60:05.02f}"
    size = max(1, int(0.1 * min(image.size)))
    ImageDraw.Draw(image).text(
        (0, 0),
        text,
        font=_font(size),
        fill=(0, 0, 0),
        stroke_width=int(0.1 * size),
        stroke_fill=(255, 255, 255),
    )


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)
