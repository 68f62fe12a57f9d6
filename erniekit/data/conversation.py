"""The one internal form of a chat, whatever the format of its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from erniekit.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


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


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text, as it stands in the data: nothing strips or rewrites it."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture.

    source: a path (str), or the bytes of an encoded picture (PNG, JPEG, ...) that the sample carries itself.
    """

    source: str | bytes


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """What the assistant thinks before it answers, without its tags."""

    text: str


Part = TextPart | ImagePart | ReasoningPart


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. trained: whether its tokens carry loss (only ever true for the assistant)."""

    role: Role
    parts: tuple[Part, ...]
    trained: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sample. sample_id is "file:line", the place that every error about it names."""

    messages: tuple[Message, ...]
    sample_id: str
