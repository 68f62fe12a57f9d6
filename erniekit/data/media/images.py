"""Opens the images of samples: resolves their sources, reads sizes from headers, and decodes pixels as RGB."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image, UnidentifiedImageError

from erniekit.data.chat.conversation import MediaKind, SampleError
from erniekit.data.media.access import NO_URLS, MediaAccess
from erniekit.data.media.fetch import PRIVATE, cache_dir, fetch
from erniekit.display.text import counted
from erniekit.local_files import is_lfs_pointer, is_web_page

_A: dict[MediaKind, str] = {"image": "an image", "video": "a video"}
_EXAMPLE: dict[MediaKind, str] = {"image": "png", "video": "mp4"}
# Raster formats only. Among Pillow's other plugins, the one for EPS starts an external program.
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# Limit for an image or a frame. From here on, Pillow warns of a decompression bomb; models use at most a twentieth.
MAX_PIXELS = 89_478_485
# The first characters of base64 of JPEG, PNG, GIF, WEBP and BMP.
_BASE64_HEADS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk")
_BASE64_SHORTEST = 64
_HEAD = 256
_LONGEST_NAME = 300
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


def resolve_source(
    value: Any, base_dir: Path, sample_id: str, *, kind: MediaKind = "image", access: MediaAccess = NO_URLS
) -> str | bytes:
    """The source of an image or video in a sample: a path, a URL, or the embedded bytes.

    value: a path (relative to base_dir), a file:// URL, a data: URI, plain base64 (images only), or an object with
    "url", "path" or "bytes" (base64). An http(s) URL is fetched later, when it is opened. Raises SampleError, also for
    a source that `access` does not permit.
    """
    if isinstance(value, dict):
        for key in ("bytes", "path", "url"):
            inner = value.get(key)
            if inner is None:
                continue
            if not isinstance(inner, str):
                raise SampleError(sample_id, "bad record", f'the "{key}" of {_A[kind]} must be a string')
            if key == "bytes":
                return _decode_base64(inner, sample_id, kind)
            return resolve_source(inner, base_dir, sample_id, kind=kind, access=access)
        detail = f'{_A[kind]} given as an object needs "url", "path" or "bytes"'
        raise SampleError(sample_id, "bad record", detail)
    if not isinstance(value, str) or not value:
        text = " or base64 text" if kind == "image" else ""
        raise SampleError(sample_id, "bad record", f"{_A[kind]} must be a path, a URL, a data: URI{text}")
    if value.startswith("data:"):
        return _data_uri(value, sample_id, kind)
    if value.startswith("file://"):
        return _path(base_dir / unquote(value.removeprefix("file://")), sample_id, kind, access)
    if is_url(value) and not value.startswith(PRIVATE):
        if access.urls != "none":
            return PRIVATE + value if access.urls == "any" else value
        detail = f"URLs are not fetched: set data.allow_urls, or download {value} and use its path"
        raise SampleError(sample_id, "not supported", detail)
    if kind == "image" and _is_base64(value):
        return _decode_base64(value, sample_id, kind)
    return _path(base_dir / value, sample_id, kind, access)


def _path(path: Path, sample_id: str, kind: MediaKind, access: MediaAccess) -> str:
    try:
        if access.has(str(path)):
            return str(path)
    except (OSError, ValueError) as error:
        raise _cannot_open(str(path), sample_id, kind, error) from error
    detail = f"the {kind} {source_name(str(path))} is not in data.media_root ({access.root})"
    raise SampleError(sample_id, "outside media_root", detail)


def is_url(source: str | bytes) -> bool:
    """Whether a source is an http(s) URL."""
    return isinstance(source, str) and source.removeprefix(PRIVATE).lower().startswith(
        ("http://", "https://")
    )


def _is_base64(value: str) -> bool:
    return "." not in value and len(value) >= _BASE64_SHORTEST and value.startswith(_BASE64_HEADS)


def _data_uri(value: str, sample_id: str, kind: MediaKind) -> bytes:
    head, comma, body = value.partition(",")
    if not comma or not head.endswith(";base64"):
        detail = f"a data: URI of {_A[kind]} must be base64 (data:{kind}/{_EXAMPLE[kind]};base64,...)"
        raise SampleError(sample_id, f"bad {kind}", detail)
    other: MediaKind = "video" if kind == "image" else "image"
    if head.startswith(f"data:{other}/"):
        detail = f"expected {_A[kind]}, found {_A[other]} ({head})"
        raise SampleError(sample_id, f"bad {kind}", detail)
    return _decode_base64(body, sample_id, kind)


def _decode_base64(text: str, sample_id: str, kind: MediaKind) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        detail = f"the base64 text of {_A[kind]} is damaged: {error}"
        raise SampleError(sample_id, f"bad {kind}", detail) from error


def image_size(source: str | bytes, sample_id: str) -> tuple[int, int]:
    """(height, width) of an image in pixels, after its EXIF orientation. Only reads the header. Raises SampleError."""
    with _open(source, sample_id) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _TURNED else (height, width)


def open_image(source: str | bytes, sample_id: str) -> Image.Image:
    """Decode an image as RGB, upright, on a white background; 16-bit grey is reduced to the high byte.

    Returns the first frame of an animation. Raises SampleError.
    """
    with _open(source, sample_id) as image:
        orientation = _orientation(image)
        try:
            image.load()
            rgb = _to_rgb(image)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises many types of errors for damaged data
            detail = f"damaged image {source_name(source)}: {error}"
            raise SampleError(sample_id, "bad image", detail) from error
        if rgb is None:
            detail = f"{source_name(source)} has pixels of type {image.mode}: save it as RGB with 8 bits per channel"
            raise SampleError(sample_id, "bad image", detail)
        return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def source_name(source: str | bytes | tuple[str | bytes, ...]) -> str:
    """The name of an image or video in messages: its path, its URL, or a description of embedded bytes."""
    if isinstance(source, tuple):
        return (
            f"({counted(len(source), 'frame')}, the first {source_name(source[0])})"
            if source
            else "(no frames)"
        )
    if isinstance(source, bytes):
        return f"(base64 in the sample, {counted(len(source), 'byte')})"
    source = source.removeprefix(PRIVATE)
    return (
        source if len(source) <= _LONGEST_NAME else f"{source[:_LONGEST_NAME]}... ({len(source)} characters)"
    )


def local_file(source: str, sample_id: str, kind: MediaKind) -> str:
    """The path of a source's file; a URL is fetched unless it is cached.

    Raises SampleError if it does not exist ("missing ..."), or is not a regular file (reading a pipe may not end).
    """
    path = str(fetch(source, cache_dir(), sample_id)) if is_url(source) else source
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SampleError(sample_id, f"missing {kind}", f"no such {kind}: {source_name(source)}") from error
    except (OSError, ValueError) as error:
        raise _cannot_open(source, sample_id, kind, error) from error
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        detail = f"cannot open the {kind} {source_name(source)}: it is {what}, not a file"
        raise SampleError(sample_id, f"bad {kind}", detail)
    return path


def not_readable(source: str | bytes, sample_id: str, kind: MediaKind) -> SampleError:
    """The error for a file that is not an image or video. Names the kind of file if its first bytes reveal it."""
    if isinstance(source, bytes):
        head, kept = source[:_HEAD], ""
    else:
        path = local_file(source, sample_id, kind)
        kept = f", kept as {path}" if is_url(source) else ""
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    what = _what_instead(head)
    detail = f"not {_A[kind]} that can be read: {source_name(source)}{kept}{what and f' (it is {what})'}"
    return SampleError(sample_id, f"bad {kind}", detail)


def _what_instead(head: bytes) -> str:
    start = head.lstrip().lower()
    if not head:
        return "empty"
    if is_web_page(head):
        return "a web page"
    if is_lfs_pointer(head):
        return "a Git LFS pointer: run `git lfs pull`"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "an SVG drawing: export it as PNG"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "HEIC: save it as JPEG"
    return ""


def _cannot_open(source: str | bytes, sample_id: str, kind: MediaKind, error: Exception) -> SampleError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return SampleError(sample_id, f"bad {kind}", f"cannot open the {kind} {source_name(source)}: {why}")


def _open(source: str | bytes, sample_id: str) -> Image.Image:
    file = local_file(source, sample_id, "image") if isinstance(source, str) else io.BytesIO(source)
    try:
        image = Image.open(file, formats=_formats())
    except Image.DecompressionBombError as error:
        raise _too_large(source, sample_id) from error
    except UnidentifiedImageError as error:
        raise not_readable(source, sample_id, "image") from error
    except MemoryError:
        raise
    except Exception as error:  # as in open_image
        raise _cannot_open(source, sample_id, "image", error) from error
    pixels = image.width * image.height
    if not 0 < pixels <= MAX_PIXELS:
        image.close()
        raise _too_large(source, sample_id) if pixels else not_readable(source, sample_id, "image")
    return image


@cache
def _formats() -> tuple[str, ...]:
    """The formats in _PILLOW_FORMATS that this build of Pillow supports."""
    Image.init()
    return tuple(name for name in _PILLOW_FORMATS if name in Image.OPEN)


def _too_large(source: str | bytes, sample_id: str) -> SampleError:
    detail = f"the image {source_name(source)} has more than {MAX_PIXELS:,} pixels: make it smaller"
    return SampleError(sample_id, "bad image", detail)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation in the header. Read before the pixels are loaded, so that size and pixels agree.

    Without the test for "exif", Pillow would decode a PNG to search the end of the file. Pillow rotates TIFF itself.
    """
    if image.format == "TIFF" or "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block; the pixels may still be valid
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image | None:
    """The image as RGB on white; None for pixels with an unknown range."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _from_16_bits(image)
    if image.mode in ("I", "F", "LAB"):
        return None
    if image.mode == "La":
        image = image.convert("LA")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 0 to 65535 (mode "I" for PGM) as RGB; the transparent value becomes white."""
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
