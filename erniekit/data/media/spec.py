"""How a checkpoint wants its images and videos, and the bounds that one of them has of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from erniekit.config import DataConfig
from erniekit.data.media.patches import PIXELS_APART, ImageSpec, limits
from erniekit.data.media.video import VideoSpec

Spec = TypeVar("Spec", ImageSpec, VideoSpec)


@dataclass(frozen=True, slots=True)
class MediaSpec:
    """How a checkpoint wants its images and its videos."""

    image: ImageSpec
    video: VideoSpec

    @classmethod
    def from_checkpoint(cls, directory: Path, data: DataConfig, seed: int = 0) -> MediaSpec:
        """Both of a checkpoint; what `data` gives replaces the checkpoint's. Raises CheckpointError, ConfigError."""
        image = ImageSpec.from_checkpoint(directory, data.min_pixels, data.max_pixels)
        return cls(image, VideoSpec.from_checkpoint(directory, data, seed))


def bounded(spec: Spec, min_pixels: int | None, max_pixels: int | None) -> Spec:
    """The spec with the bounds of one image or video in the place of its own, where they are given.

    Raises ValueError for bounds that allow no token.
    """
    if min_pixels is None and max_pixels is None:
        return spec
    side = spec.patch_size * spec.merge_size
    if max_pixels is not None and max_pixels < side**2:
        raise ValueError(f"its max_pixels ({max_pixels}) must allow one token of {side}x{side} pixels")
    least, most = limits(min_pixels, max_pixels, (spec.min_pixels, spec.max_pixels), PIXELS_APART)
    return replace(spec, min_pixels=least, max_pixels=most)
