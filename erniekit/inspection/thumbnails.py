"""Thumbnails of images and videos, as data: URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

from PIL import Image

from erniekit.data.chat.conversation import SampleError
from erniekit.data.media.frames import load_frames
from erniekit.data.media.images import open_image
from erniekit.inspection.preview import ShownMedia

_LONGEST_SIDE = 160  # pixels
_QUALITY = 80


class Thumbnail:
    """A small JPEG. caption: "" for an image, the frame number for a video."""

    def __init__(self, image: Image.Image, caption: str = "") -> None:
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY)
        self.uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        self.width, self.height = image.size
        self.caption = caption


def thumbnails(shown: ShownMedia, sample_id: str) -> list[Thumbnail] | SampleError:
    """The image, or the first, middle and last sampled frame of a video; the error if it cannot be decoded."""
    try:
        return list(_thumbnails(shown, sample_id))
    except SampleError as error:
        return error


def _thumbnails(shown: ShownMedia, sample_id: str) -> Iterator[Thumbnail]:
    source, frames = shown.media.source, shown.media.frames
    if not frames:
        assert not isinstance(source, tuple), "only a video is given as frames"
        yield Thumbnail(open_image(source, sample_id))
        return
    wanted = sorted({frames[0], frames[(len(frames) - 1) // 2], frames[-1]})
    for number, image in zip(wanted, load_frames(source, tuple(wanted), sample_id), strict=True):
        yield Thumbnail(image, f"frame {number + 1:,}")
