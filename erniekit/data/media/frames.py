"""Reads video files through PyAV: what their headers say, and single frames out of them."""

from __future__ import annotations

import io
import math
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from erniekit.data.chat.conversation import SampleError
from erniekit.data.media.images import (
    MAX_PIXELS,
    image_size,
    local_file,
    not_readable,
    open_image,
    source_name,
)

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter

VideoSource = str | bytes | tuple[str | bytes, ...]

# Containers of videos alone. FFmpeg also reads playlists, which name other files and URLs, and much else.
_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,ivf,mxf,dv,m4v,h264,hevc,rm"
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
# Containers whose index leads to the right place.
_SEEKABLE = ("mov", "matroska")
# A header may count a frame or two that the decoder does not give (edit lists, packed B-frames).
_MISCOUNT = 2
# What transformers takes for a video that does not say.
_UNKNOWN_FPS = 24.0
# Names of the images in a directory of frames; all else there is passed over.
_FRAME_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2"),
)
_UPRIGHT = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """frames: their number; fps: of the file, 0 for frames given as images; height, width: upright."""

    frames: int
    fps: float
    height: int
    width: int


def frame_files(source: VideoSource, sample_id: str) -> VideoSource:
    """Of a directory its images, in the order of the numbers in their names; any other source as it is.

    Raises SampleError where there is none.
    """
    if not isinstance(source, str) or not os.path.isdir(source):
        return source
    try:
        names = os.listdir(source)
    except OSError as error:
        raise _bad(source, sample_id, f"the directory cannot be read: {error.strerror}") from error
    # A dot begins the files that file managers leave behind.
    names = [name for name in names if name.lower().endswith(_FRAME_SUFFIXES) and not name.startswith(".")]
    if not names:
        raise _bad(source, sample_id, "it is a directory without images; of a directory they are the frames")
    return tuple(os.path.join(source, name) for name in sorted(names, key=_by_numbers))


def _by_numbers(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Orders frame2 before frame10; names that differ in zeros or case alone keep an order of their own."""
    pieces = re.split(r"([0-9]+)", name.lower())
    return [
        (False, int(piece), "") if piece.isascii() and piece.isdigit() else (True, 0, piece)
        for piece in pieces
    ], name


def video_info(source: VideoSource, sample_id: str) -> VideoInfo:
    """What a video is, from its header; decodes one frame, as only that knows how a phone was held.

    Where the header has no number of frames the file is read through, without decoding. Pixels are taken as
    square. Raises SampleError.
    """
    source = frame_files(source, sample_id)
    if isinstance(source, tuple):
        if not source:
            raise _bad(source, sample_id, "it has no frames")
        height, width = image_size(source[0], sample_id)
        return VideoInfo(len(source), 0.0, height, width)
    with _reading(source, sample_id) as (container, stream):
        frames = _count_in_header(container, stream)
        first, packets = None, 0
        for packet in container.demux(stream):
            packets += _is_shown(packet)
            if first is None:
                first = next(iter(packet.decode()), None)
            elif frames:
                break
        frames = frames or packets
        if first is None or not frames:
            raise _bad(source, sample_id, "it has no frames")
        _refuse_size(source, first.width, first.height, sample_id)
        turned = first.rotation in (90, -90)
        height, width = (first.width, first.height) if turned else (first.height, first.width)
        rate = stream.average_rate or stream.guessed_rate
        return VideoInfo(frames, float(rate) if rate else _UNKNOWN_FPS, height, width)


def load_frames(source: VideoSource, frames: tuple[int, ...], sample_id: str) -> Iterator[Image.Image]:
    """The frames of these numbers (ascending, repeats allowed), upright, RGB, one at a time.

    Numbers count the frames in the order in which they are shown. Raises SampleError, also when the file ends
    before the last of them.
    """
    source = frame_files(source, sample_id)
    if isinstance(source, tuple):
        for number in frames:
            yield open_image(source[number], sample_id)
        return
    with _reading(source, sample_id) as (container, stream):
        places = [_place(packet) for packet in container.demux(stream) if packet.size]
        shown = [place for place in places if place.is_shown]
        if not shown or frames[-1] >= len(shown) + _MISCOUNT:
            why = f"it is cut off: frame {frames[-1] + 1} is wanted, and it ends after {len(shown)}"
            raise _bad(source, sample_id, why)
        wanted = [min(number, len(shown) - 1) for number in frames]
        times = sorted(place.pts for place in shown if place.pts is not None)
        keys = [(place.pts, place.dts) for place in places if place.is_keyframe and place.pts is not None]
        keys.sort(key=lambda key: key[0])
        seeks = container.format.name.startswith(_SEEKABLE) and len(times) == len(shown)
        if seeks and keys:
            found = _by_time(container, stream, keys, [times[number] for number in wanted])
            yield from _images(found, wanted, len(shown), source, sample_id)
            return
    with _reading(source, sample_id) as (container, stream):
        yield from _images(_by_number(container, stream, wanted), wanted, len(shown), source, sample_id)


_Key = tuple[int, int | None]  # pts, dts of a keyframe


class _Place(NamedTuple):
    """Where a frame is in a file: when it is shown, when decoded, and whether decoding can begin there."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_shown: bool


def _place(packet: Packet[VideoStream]) -> _Place:
    return _Place(packet.pts, packet.dts, packet.is_keyframe, _is_shown(packet))


def _images(
    found: Iterator[VideoFrame], wanted: list[int], total: int, source: str | bytes, sample_id: str
) -> Iterator[Image.Image]:
    """Decoded frames as images; the last stands for one or two that the decoder keeps back at the end."""
    from av.video.reformatter import VideoReformatter

    # One for all frames: setting it up takes ten times as long as a frame does.
    reformatter = VideoReformatter()
    done, frame = 0, None
    for frame in found:
        _refuse_size(source, frame.width, frame.height, sample_id)
        yield _image(frame, reformatter)
        done += 1
    for number in wanted[done:]:
        if frame is None or number < total - _MISCOUNT:
            raise _bad(source, sample_id, f"its frames from number {number + 1} on cannot be decoded")
        yield _image(frame, reformatter)


def _by_time(
    container: InputContainer, stream: VideoStream, keys: list[_Key], times: list[int]
) -> Iterator[VideoFrame]:
    """The first frame at or after each time, decoding from the keyframe before it."""
    done = 0
    while done < len(times):
        key = max(0, bisect_right(keys, times[done], key=lambda key: key[0]) - 1)
        next_key = keys[key + 1][0] if key + 1 < len(keys) else math.inf
        for frame in _decode_from(container, stream, keys, key, times[done:]):
            while done < len(times) and frame.pts is not None and frame.pts >= times[done]:
                yield frame
                done += 1
            if done == len(times) or times[done] >= next_key:
                break
        else:
            return


def _decode_from(
    container: InputContainer,
    stream: VideoStream,
    keys: list[_Key],
    key: int,
    times: list[int],
) -> Iterator[VideoFrame]:
    """Frames from a keyframe on.

    Containers differ in which of its times they look for and may lead too far: then to an earlier place.
    """
    pts, dts = keys[key]
    for time in (pts, pts if dts is None else dts, keys[0][0]):
        container.seek(time, stream=stream)
        frames = _decode(container, stream, frozenset(times))
        first = next(frames, None)
        if first is not None and first.pts is not None and first.pts <= times[0]:
            break
    if first is not None:
        yield first
        yield from frames


def _decode(container: InputContainer, stream: VideoStream, times: frozenset[int]) -> Iterator[VideoFrame]:
    """Frames in the order in which they are shown; those of other times only where others build on them."""
    for packet in container.demux(stream):
        needed = packet.pts is None or packet.pts in times
        stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        yield from packet.decode()


def _by_number(container: InputContainer, stream: VideoStream, wanted: list[int]) -> Iterator[VideoFrame]:
    """Frames of these numbers, decoding from the start."""
    done = 0
    for number, frame in enumerate(container.decode(stream)):
        while done < len(wanted) and wanted[done] == number:
            yield frame
            done += 1
        if done == len(wanted):
            return


@contextmanager
def _reading(source: str | bytes, sample_id: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """An open container and its video. What PyAV raises in the block becomes a SampleError."""
    import av

    file = "file:" + local_file(source, sample_id, "video") if isinstance(source, str) else io.BytesIO(source)
    try:
        container = av.open(file, "r", options=dict(_OPTIONS), metadata_errors="replace")
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:
        raise not_readable(source, sample_id, "video") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _bad(source, sample_id, f"it cannot be opened: {_why(error)}") from error
    with container:
        stream = _stream(container)
        if stream is None or stream.codec_context is None:
            lack = "no video in it" if stream is None else "no decoder for its codec"
            raise _bad(source, sample_id, f"there is {lack}")
        _refuse_size(source, stream.width, stream.height, sample_id)
        # Workers are processes: threads inside them would only compete.
        stream.thread_type = "NONE"
        stream.thread_count = 1
        try:
            yield container, stream
        except (av.error.FFmpegError, OverflowError, ValueError) as error:
            raise _bad(source, sample_id, f"it is damaged: {_why(error)}") from error


def _stream(container: InputContainer) -> VideoStream | None:
    """The first video that is not the cover of an album."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def _count_in_header(container: InputContainer, stream: VideoStream) -> int:
    """Number of frames that will be shown, 0 if only reading the file through can tell."""
    index = stream.index_entries
    if stream.frames and len(index) and container.format.name.startswith("mov"):
        return sum(not entry.is_discard for entry in index)
    return stream.frames


def _is_shown(packet: Packet[VideoStream]) -> bool:
    """Whether a frame that is to be seen comes of a packet.

    Not of the empty one that ends a stream, of one that an edit list cuts off, nor of VP8's hidden reference
    frames (RFC 6386, 9.1: bit 4 of the first byte).
    """
    if not packet.size or packet.is_discard:
        return False
    return packet.stream.codec_context.name != "vp8" or bool(bytes(packet)[0] & 0x10)


def _image(frame: VideoFrame, reformatter: VideoReformatter) -> Image.Image:
    image = Image.fromarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
    return image.transpose(_UPRIGHT[frame.rotation]) if frame.rotation in _UPRIGHT else image


def _why(error: Exception) -> str:
    # str() of FFmpeg's errors adds a number and a function's name, which tell a user nothing.
    return getattr(error, "strerror", None) or str(error)


def _refuse_size(source: VideoSource, width: int, height: int, sample_id: str) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise _bad(
            source, sample_id, f"its frames are {width} x {height} pixels; at most {MAX_PIXELS:,} are read"
        )


def _bad(source: VideoSource, sample_id: str, why: str) -> SampleError:
    return SampleError(sample_id, "bad video", f"the video {source_name(source)} cannot be used: {why}")
