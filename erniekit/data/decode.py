"""From the media of a document to their patches: what worker processes do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from erniekit.data.conversation import SampleError
from erniekit.data.document import Document, Media
from erniekit.data.media import describe, open_image
from erniekit.data.video import VideoSpec, patchify_video
from erniekit.data.vision import PIXELS_APART, ImageSpec, Patches, limits, patchify

Spec = TypeVar("Spec", ImageSpec, VideoSpec)


@dataclass(frozen=True, slots=True)
class MediaSpec:
    """How a checkpoint wants its pictures and its videos."""

    image: ImageSpec
    video: VideoSpec


def bounded(spec: Spec, min_pixels: int | None, max_pixels: int | None) -> Spec:
    """The spec with the bounds of one picture or video in the place of its own, where they are given.

    Raises ValueError for bounds that allow no token.
    """
    if min_pixels is None and max_pixels is None:
        return spec
    side = spec.patch_size * spec.merge_size
    if max_pixels is not None and max_pixels < side**2:
        raise ValueError(f"its max_pixels ({max_pixels}) must allow one token of {side}x{side} pixels")
    least, most = limits(min_pixels, max_pixels, (spec.min_pixels, spec.max_pixels), PIXELS_APART)
    return replace(spec, min_pixels=least, max_pixels=most)


def decode(document: Document, spec: MediaSpec | None) -> list[Patches]:
    """Patches of every picture and video of a document, in order.

    spec: None for a text model, whose documents have neither. Raises SampleError when one cannot be decoded.
    """
    if not document.media:
        return []
    assert spec is not None, "only an encoder with a MediaSpec makes documents with media"
    return [_decode(item, spec, document.sample_id) for item in document.media]


def _decode(item: Media, spec: MediaSpec, sample_id: str) -> Patches:
    if item.is_video:
        video = bounded(spec.video, item.min_pixels, item.max_pixels)
        return patchify_video(item.source, item.frames, item.grid_thw, video, sample_id, item.times)
    assert not isinstance(item.source, tuple), "only a video is given as frames"
    try:
        patches, grid = patchify(
            open_image(item.source, sample_id), bounded(spec.image, item.min_pixels, item.max_pixels)
        )
    except ValueError:  # no longer of a shape that can be resized
        grid = None
    if grid != item.grid_thw:
        detail = f"the picture {describe(item.source)} has changed since the data was read"
        raise SampleError(sample_id, "bad image", detail)
    return patches
