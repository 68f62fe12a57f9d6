"""The one internal form of a sample, whatever the format of its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from erniekit.errors import DataError

Role = Literal["system", "user", "assistant", "tool", "text"]
MediaKind = Literal["image", "video"]
CHAT_ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


class SampleError(DataError):
    """One sample is wrong. With `data.on_error: skip` it is left out and counted under its reason.

    sample_id is "file:line"; reason is one of few short phrases (the key of the count); detail says what and
    what to do.
    """

    def __init__(self, sample_id: str, reason: str, detail: str) -> None:
        super().__init__(f"{sample_id}: {detail}")
        self.sample_id = sample_id
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str, str]]:
        # An exception is pickled by its message alone, and this one comes out of worker processes.
        return SampleError, (self.sample_id, self.reason, self.detail)


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text, as it stands in the data: nothing strips or rewrites it.

    trained: whether it carries loss where its message does.
    """

    text: str
    trained: bool = True


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image.

    source: a path (str), or the bytes of an encoded image (PNG, JPEG, ...) that the sample carries itself.
    min_pixels, max_pixels: bounds of its area after resizing, in the place of the model's.
    """

    source: str | bytes
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class VideoPart:
    """A video.

    source: the path of a file or of a directory of frames (str), the bytes of a video file, or its frames as
    images, in order (a tuple). All else is in the place of the model's settings where it is given. fps: of a file,
    frames to pick per second; of frames, how many were taken per second. min_frames, max_frames: bounds of the number
    of frames; start, end: seconds between which frames are picked; min_pixels, max_pixels: bounds of a frame's area
    after resizing; times: of frames, the second of each.
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
    """What the assistant thinks before it answers, without its tags. trained: as in `TextPart`."""

    text: str
    trained: bool = True


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A call that the assistant makes.

    arguments: a JSON object as text, as it stands in the data (an object there is written by json.dumps). trained: as
    in `TextPart`. id: by which the data knows the call, "" for none; templates write none.
    """

    name: str
    arguments: str
    trained: bool = True
    id: str = field(default="", compare=False, repr=False)


Part = TextPart | ImagePart | VideoPart | ReasoningPart | ToolCallPart


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. trained: whether its tokens carry loss (only ever true for the assistant and plain text)."""

    role: Role
    parts: tuple[Part, ...]
    trained: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sample.

    sample_id is "file:line", the place that every error about it names. tools: what the assistant may call,
    each {"type": "function", "function": {"name", ...}} as servers give them to chat templates. rejected: of a
    preference pair, what the messages after the common prompt are in the rejected answer; messages then ends
    with the chosen one. rejected_prompt: the messages before the rejected answer where they are others than those
    before the chosen one (other images), else empty. Plain text (continued pre-training) is a single message of role
    "text". notices: what of the record users should know, such as keys that are not read; each text is the same for
    all samples of its kind.
    """

    messages: tuple[Message, ...]
    sample_id: str
    tools: tuple[dict[str, Any], ...] = ()
    rejected: tuple[Message, ...] = ()
    rejected_prompt: tuple[Message, ...] = ()
    notices: tuple[str, ...] = field(default=(), compare=False)
