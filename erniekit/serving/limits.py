"""Limits the size of a request, before it takes memory or time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from erniekit.data.encode.document import Document
from erniekit.data.media.images import image_size
from erniekit.data.media.video import video_info
from erniekit.local_files import most_values
from erniekit.serving.fields import RequestError

MAX_BODY_BYTES = 64 << 20  # a few large images
MAX_HELD_BYTES = 256 << 20
_MAX_VALUES = 500_000  # of JSON in a body
# No text has so few tokens: English has 4 characters a token, and runs of spaces or dashes are rare.
_CHARACTERS_PER_TOKEN = 16
_MEDIA_TOKENS = 3  # the fewest that an image takes, with its markers
# Decoding 89 million pixels takes up to 3 s, and a file of 34 bytes may have so many. Videos take less for a pixel.
_MAX_PIXELS = 1 << 30
_VIDEO_PIXELS = 16


class BodyLimits:
    """Middleware: bounds each body, and all bodies of requests that are received or answered at a time.

    Endpoints call `request.state.hold` with the number of bytes that they download for a request.
    """

    def __init__(self, app: ASGIApp, *, body_bytes: int, held_bytes: int) -> None:
        self._app = app
        self._body_bytes = body_bytes
        self._held_bytes = held_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        def hold(more: int) -> None:
            nonlocal size
            size += more
            self._held += more
            if self._held > self._held_bytes:
                raise RequestError("the server holds too many large requests: try later", status=503)

        async def bounded() -> Message:
            if not size:
                self._check_size(int(Headers(scope=scope).get("Content-Length", 0)))
            message = await receive()
            received = len(message.get("body", b""))
            if received:
                hold(received)
                self._check_size(size)
            return message

        scope.setdefault("state", {})["hold"] = hold
        try:
            await self._app(scope, bounded, send)
        finally:
            self._held -= size

    def _check_size(self, size: int) -> None:
        if size > self._body_bytes:
            raise RequestError(f"the body has more than {self._body_bytes:,} bytes, the limit", status=413)


def check_values(body: bytes) -> None:
    """Raise RequestError for JSON with too many values, before it is parsed."""
    if most_values(body) > _MAX_VALUES:
        raise RequestError(f"the body has more than {_MAX_VALUES:,} JSON values, the limit", status=413)


def check_text(messages: Any, tools: Any, positions: int) -> None:
    """Raise RequestError for more text and media than fit into the model's positions, before they are tokenized."""
    most = positions * _CHARACTERS_PER_TOKEN
    found = _characters(messages) + _characters(tools)
    if found > most:
        raise RequestError(
            f"the request has {found:,} characters of text, more than {most:,}; prompt and answer must fit into "
            f"{positions:,} positions",
            param="messages",
            code="context_length_exceeded",
        )


def check_media(prompt: Document) -> None:
    """Raise RequestError for images and videos that take too long to decode. Reads their headers only."""
    pixels = 0
    for item in prompt.media:
        if isinstance(item.source, tuple) or item.is_video:
            info = video_info(item.source, prompt.sample_id)
            pixels += info.frames * info.height * info.width // _VIDEO_PIXELS
        else:
            pixels += math.prod(image_size(item.source, prompt.sample_id))
    if pixels > _MAX_PIXELS:
        raise RequestError(
            f"its images have more than {_MAX_PIXELS:,} pixels together, the limit; all frames of a video file count, "
            f"with a {_VIDEO_PIXELS}th of their pixels: make them smaller",
            param="messages",
        )


def _characters(value: Any) -> int:
    """Characters of all strings in a JSON value; an image or a video counts as its fewest tokens."""
    found, left = 0, [value]
    while left:
        inner = left.pop()
        if isinstance(inner, str):
            found += len(inner)
        elif isinstance(inner, list):
            left += inner
        elif isinstance(inner, Mapping):
            if inner.get("type") in ("image_url", "video_url"):
                found += _MEDIA_TOKENS * _CHARACTERS_PER_TOKEN
                inner = {key: part for key, part in inner.items() if key != inner["type"]}
            left += (*inner.keys(), *inner.values())
    return found
