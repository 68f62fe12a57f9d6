"""The one internal form of a sample, whatever the format of its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from erniekit.errors import DataError

Role = Literal["system", "user", "assistant", "tool", "text"]
MediaKind = Literal["image", "video"]
CHAT_ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


class SampleError(DataError):
    """An error about one sample. With `data.on_error: skip` the sample is skipped and counted under its reason.

    sample_id: "file:line"; reason: a short phrase that many errors share; detail: what is wrong and how to fix it.
    """

    def __init__(self, sample_id: str, reason: str, detail: str) -> None:
        super().__init__(f"{sample_id}: {detail}")
        self.sample_id = sample_id
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str, str]]:
        # Exceptions are pickled with their message alone, and worker processes send this one.
        return SampleError, (self.sample_id, self.reason, self.detail)


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text exactly as in the data.

    trained: whether it carries loss if its message does.
    """

    text: str
    trained: bool = True


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image.

    source: a path or URL (str), or the bytes of an encoded image (PNG, JPEG, ...) that is embedded in the sample.
    min_pixels, max_pixels: bounds of its area after resizing; None for the model's.
    """

    source: str | bytes
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class VideoPart:
    """A video.

    source: the path of a file or of a directory of frames, or a URL (str), the bytes of a video file, or a tuple of its
    frames as images. All other fields override the run's settings. fps: frames to sample per second; for frames, the
    rate at which they were taken. min_frames, max_frames: bounds of the number of frames; start, end: the interval to
    sample from, in seconds; min_pixels, max_pixels: bounds of a frame's area after resizing; times: for frames, the
    time of each in seconds.
    """

    source: str | bytes | tuple[str | bytes, ...]
    fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    start: float | None = None
    end: float | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    times: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """The assistant's reasoning before its answer, without tags. trained: as in `TextPart`."""

    text: str
    trained: bool = True


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A call that the assistant makes.

    arguments: the text of a JSON object, exactly as in the data (json.dumps if the data has an object). trained: as in
    `TextPart`. id: the call's id in the data, "" for none; templates do not write it.
    """

    name: str
    arguments: str
    trained: bool = True
    id: str = field(default="", compare=False, repr=False)


Part = TextPart | ImagePart | VideoPart | ReasoningPart | ToolCallPart


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. trained: whether its tokens carry loss; only true for the assistant and plain text."""

    role: Role
    parts: tuple[Part, ...]
    trained: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sample.

    sample_id: "file:line", for errors. tools: the tools that the assistant may call, each {"type": "function",
    "function": {"name", ...}}, as servers pass them to chat templates. rejected: for a preference pair, the messages of
    the rejected answer after the common prompt; `messages` then ends with the chosen answer. rejected_prompt: the
    prompt of the rejected answer if it differs from the chosen one's (other images), else empty. Plain text (continued
    pre-training) is a single message of role "text". notices: remarks about the record for the user, such as keys that
    are not read; samples with the same problem share the text.
    """

    messages: tuple[Message, ...]
    sample_id: str
    tools: tuple[dict[str, Any], ...] = ()
    rejected: tuple[Message, ...] = ()
    rejected_prompt: tuple[Message, ...] = ()
    notices: tuple[str, ...] = field(default=(), compare=False)
