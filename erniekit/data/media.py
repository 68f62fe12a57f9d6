"""Opens the pictures of samples: where a source points, its size from the header alone, its pixels as RGB."""

from __future__ import annotations

import base64
import binascii
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from erniekit.data.conversation import SampleError

# Raster formats only: Pillow's other plugins are of no use here, and that of EPS starts an external program.
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# At as many Pillow warns of a decompression bomb; models look at a twentieth of it at most.
_MAX_PIXELS = 89_478_485
# How base64 of JPEG, PNG, GIF, WEBP and BMP begins.
_BASE64_HEADS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk")
_BASE64_SHORTEST = 64
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = frozenset({5, 6, 7, 8})


def resolve_source(value: Any, base_dir: Path, sample_id: str) -> str | bytes:
    """Where a picture named in a sample is: a path, or the bytes that the sample carries.

    value: a path (relative ones from base_dir) or file:// URL, a data: URI, plain base64, or an object with
    "url", "path" or "bytes" (base64). Nothing is fetched: an http(s) URL is an error. Raises SampleError.
    """
    if isinstance(value, dict):
        for key, read in (("bytes", _decode_base64), ("path", None), ("url", None)):
            if value.get(key) is not None:
                inner = value[key]
                if not isinstance(inner, str):
                    raise SampleError(sample_id, "bad record", f'the "{key}" of a picture must be a string')
                return read(inner, sample_id) if read else resolve_source(inner, base_dir, sample_id)
        raise SampleError(
            sample_id, "bad record", 'a picture given as an object needs "url", "path" or "bytes"'
        )
    if not isinstance(value, str) or not value:
        raise SampleError(sample_id, "bad record", "a picture must be a path, a data: URI or base64 text")
    if value.startswith("data:"):
        head, comma, body = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise SampleError(
                sample_id, "bad image", "a data: URI of a picture must be base64 (data:image/png;base64,...)"
            )
        return _decode_base64(body, sample_id)
    if value.startswith(("http://", "https://")):
        detail = f"pictures are not fetched from the network: download {value} and give its path"
        raise SampleError(sample_id, "not supported", detail)
    if "." not in value and len(value) >= _BASE64_SHORTEST and value.startswith(_BASE64_HEADS):
        return _decode_base64(value, sample_id)
    return str(base_dir / value.removeprefix("file://"))


def _decode_base64(text: str, sample_id: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError(sample_id, "bad image", f"a picture's base64 text is damaged: {error}") from error


def image_size(source: str | bytes, sample_id: str) -> tuple[int, int]:
    """(height, width) in pixels of a picture as it is to be seen (EXIF orientation applied).

    Reads its header only.
    """
    with _open(source, sample_id) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _TURNED else (height, width)


def open_image(source: str | bytes, sample_id: str) -> Image.Image:
    """A picture as RGB, upright, transparency on white, 16-bit greys reduced to their high byte.

    Raises SampleError.
    """
    with _open(source, sample_id) as image:
        orientation = _orientation(image)
        try:
            image.load()
            picture = _to_rgb(image)
        except MemoryError:
            raise
        except Exception as error:  # on damaged data Pillow's decoders raise nearly anything
            detail = f"damaged picture {describe(source)}: {error}"
            raise SampleError(sample_id, "bad image", detail) from error
        if picture is None:
            detail = f"{describe(source)} has pixels of type {image.mode}: save it with 8 bits a channel"
            raise SampleError(sample_id, "bad image", detail)
        return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def describe(source: str | bytes) -> str:
    """A picture's name in messages: its path, or that it came inside the sample."""
    return source if isinstance(source, str) else f"(base64 in the sample, {len(source)} bytes)"


def _open(source: str | bytes, sample_id: str) -> Image.Image:
    try:
        image = Image.open(source if isinstance(source, str) else io.BytesIO(source), formats=_formats())
    except FileNotFoundError as error:
        raise SampleError(sample_id, "missing image", f"no such picture: {describe(source)}") from error
    except Image.DecompressionBombError as error:
        raise _too_large(source, sample_id) from error
    except UnidentifiedImageError as error:
        detail = f"not a picture that can be read: {describe(source)}"
        raise SampleError(sample_id, "bad image", detail) from error
    except MemoryError:
        raise
    except Exception as error:  # as in open_image
        detail = f"cannot open the picture {describe(source)}: {error}"
        raise SampleError(sample_id, "bad image", detail) from error
    if image.width * image.height > _MAX_PIXELS:
        image.close()
        raise _too_large(source, sample_id)
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those of _PILLOW_FORMATS that this build of Pillow has."""
    Image.init()
    return tuple(name for name in _PILLOW_FORMATS if name in Image.OPEN)


def _too_large(source: str | bytes, sample_id: str) -> SampleError:
    detail = f"the picture {describe(source)} has more than {_MAX_PIXELS:,} pixels: make it smaller"
    return SampleError(sample_id, "bad image", detail)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of the header; asked before the pixels are loaded, so that size and pixels agree.

    Without the test for "exif" Pillow would decode a PNG to look for it at the file's end; TIFF it turns by
    itself.
    """
    if image.format == "TIFF" or "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block, which says nothing of the pixels
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image | None:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return None
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")
