"""From the images and videos of a document to their patches: what worker processes do."""

from __future__ import annotations

from collections.abc import Sequence

from erniekit.data.chat.conversation import SampleError
from erniekit.data.media.images import open_image, source_name
from erniekit.data.media.item import Media
from erniekit.data.media.patches import Patches, patchify
from erniekit.data.media.spec import MediaSpec, bounded
from erniekit.data.media.video import patchify_video


def decode(media: Sequence[Media], sample_id: str, spec: MediaSpec | None) -> list[Patches]:
    """Patches of the images and videos of a document, in order.

    spec: None for a text model, whose documents have neither. Raises SampleError when one cannot be decoded.
    """
    if not media:
        return []
    assert spec is not None, "only an encoder with a MediaSpec makes documents with media"
    return [_decode(item, spec, sample_id) for item in media]


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
        detail = f"the image {source_name(item.source)} has changed since the data was read"
        raise SampleError(sample_id, "bad image", detail)
    return patches
