"""Reads the headers of video files and single frames, with PyAV."""

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

# Only containers of videos: FFmpeg also reads playlists, which name other files and URLs, and much more.
_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,ivf,mxf,dv,m4v,h264,hevc,rm"
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
# Containers with a reliable index.
_SEEKABLE = ("mov", "matroska")
# A header may count one or two frames that the decoder does not return (edit lists, packed B-frames).
_MISCOUNT = 2
# transformers' default for a video without a frame rate.
_UNKNOWN_FPS = 24.0
# Suffixes of the images in a directory of frames; other files are ignored.
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
    """frames: number of frames; fps: of the file, 0 for frames given as images; height, width: after rotation."""

    frames: int
    fps: float
    height: int
    width: int


def frame_files(source: VideoSource, sample_id: str) -> VideoSource:
    """The images of a directory, in the order of the numbers in their names; any other source unchanged.

    Raises SampleError for a directory without images.
    """
    if not isinstance(source, str) or not os.path.isdir(source):
        return source
    try:
        names = os.listdir(source)
    except OSError as error:
        raise _bad(source, sample_id, f"the directory cannot be read: {error.strerror}") from error
    # Skip hidden files, such as those that file managers create.
    names = [name for name in names if name.lower().endswith(_FRAME_SUFFIXES) and not name.startswith(".")]
    if not names:
        raise _bad(source, sample_id, "it is a directory without images, which would be its frames")
    return tuple(os.path.join(source, name) for name in sorted(names, key=_by_numbers))


def _by_numbers(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Orders frame2 before frame10; names that differ only in zeros or case are ordered by their characters."""
    pieces = re.split(r"([0-9]+)", name.lower())
    return [
        (False, int(piece), "") if piece.isascii() and piece.isdigit() else (True, 0, piece)
        for piece in pieces
    ], name


def video_info(source: VideoSource, sample_id: str) -> VideoInfo:
    """The header of a video. Decodes one frame, because only a frame has the rotation.

    If the header has no number of frames, the file is read to its end without decoding. Pixels are assumed to be
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

    Numbers count frames in display order. Raises SampleError, also when the file ends before the last frame.
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
            why = f"it is cut off: frame {frames[-1] + 1} is needed, but it ends after {len(shown)}"
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
    """A frame in a file: its display time, its decoding time, and whether decoding can begin there."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_shown: bool


def _place(packet: Packet[VideoStream]) -> _Place:
    return _Place(packet.pts, packet.dts, packet.is_keyframe, _is_shown(packet))


def _images(
    found: Iterator[VideoFrame], wanted: list[int], total: int, source: str | bytes, sample_id: str
) -> Iterator[Image.Image]:
    """Decoded frames as images; the last frame replaces one or two that the decoder does not return at the end."""
    from av.video.reformatter import VideoReformatter

    # One for all frames: its setup takes ten times as long as a frame.
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

    Containers seek by display or decoding time and may end up too late: then an earlier time is tried.
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
    """Frames in display order; frames of other times are decoded only if others depend on them."""
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
    """An open container and its video stream. Errors of PyAV in the block become SampleErrors."""
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
            why = "it has no video stream" if stream is None else "there is no decoder for its codec"
            raise _bad(source, sample_id, why)
        _refuse_size(source, stream.width, stream.height, sample_id)
        # Workers are processes: threads inside them would only compete for cores.
        stream.thread_type = "NONE"
        stream.thread_count = 1
        try:
            yield container, stream
        except (av.error.FFmpegError, OverflowError, ValueError) as error:
            raise _bad(source, sample_id, f"it is damaged: {_why(error)}") from error


def _stream(container: InputContainer) -> VideoStream | None:
    """The first video stream that is not an attached image."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def _count_in_header(container: InputContainer, stream: VideoStream) -> int:
    """Number of frames that are shown; 0 if the whole file must be read to know it."""
    index = stream.index_entries
    if stream.frames and len(index) and container.format.name.startswith("mov"):
        return sum(not entry.is_discard for entry in index)
    return stream.frames


def _is_shown(packet: Packet[VideoStream]) -> bool:
    """Whether a packet has a frame that is shown.

    The empty packet at the end of a stream has none, nor have packets that an edit list cuts off and VP8's hidden
    reference frames (RFC 6386, 9.1: bit 4 of the first byte).
    """
    if not packet.size or packet.is_discard:
        return False
    return packet.stream.codec_context.name != "vp8" or bool(bytes(packet)[0] & 0x10)


def _image(frame: VideoFrame, reformatter: VideoReformatter) -> Image.Image:
    image = Image.fromarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
    return image.transpose(_UPRIGHT[frame.rotation]) if frame.rotation in _UPRIGHT else image


def _why(error: Exception) -> str:
    # str() of FFmpeg's errors adds a number and the name of a function, which do not help a user.
    return getattr(error, "strerror", None) or str(error)


def _refuse_size(source: VideoSource, width: int, height: int, sample_id: str) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise _bad(
            source, sample_id, f"its frames are {width} x {height} pixels; at most {MAX_PIXELS:,} are read"
        )


def _bad(source: VideoSource, sample_id: str, why: str) -> SampleError:
    return SampleError(sample_id, "bad video", f"the video {source_name(source)} cannot be used: {why}")
