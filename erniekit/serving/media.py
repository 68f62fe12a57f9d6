"""Downloads the images and videos of a request that are URLs into memory, as if the client had sent them."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from typing import Any

from erniekit.data.chat.conversation import Conversation, ImagePart, Message, SampleError, VideoPart
from erniekit.data.media.fetch import download
from erniekit.data.media.images import is_url, source_name
from erniekit.serving.fields import RequestError
from erniekit.serving.limits import MAX_BODY_BYTES

MAX_URLS = 64  # of a request
_SECONDS = 60.0  # for all of a request


def has_urls(conversation: Conversation) -> bool:
    """Whether anything must be downloaded."""
    return any(_url(part) for message in conversation.messages for part in message.parts)


def with_media(
    conversation: Conversation, *, max_bytes: int = MAX_BODY_BYTES, seconds: float = _SECONDS
) -> tuple[Conversation, int]:
    """The conversation with URLs replaced by their contents, and the number of bytes.

    max_bytes, seconds: for all of them. Raises RequestError, which does not say why a URL cannot be used: the answers
    to many URLs would tell a client what this machine can reach. The server's log has the reason.
    """
    urls = sum(bool(_url(part)) for message in conversation.messages for part in message.parts)
    if urls > MAX_URLS:
        raise RequestError(f"the request has {urls} URLs, more than {MAX_URLS}, the limit", param="messages")
    left, end = max_bytes, time.monotonic() + seconds
    fetched: dict[str, bytes] = {}

    def filled(part: Any) -> Any:
        nonlocal left
        url = _url(part)
        if not url:
            return part
        if url not in fetched:
            fetched[url] = _download(url, left, max(end - time.monotonic(), 0.0))
            left -= len(fetched[url])
        return replace(part, source=fetched[url])

    def whole(message: Message) -> Message:
        return replace(message, parts=tuple(map(filled, message.parts)))

    messages = tuple(map(whole, conversation.messages))
    return replace(conversation, messages=messages), max_bytes - left


def _url(part: Any) -> str:
    """The URL of an image or video, "" for all else."""
    found = isinstance(part, ImagePart | VideoPart) and isinstance(part.source, str) and is_url(part.source)
    return part.source if found else ""


def _download(url: str, max_bytes: int, seconds: float) -> bytes:
    file = io.BytesIO()
    try:
        download(url, file, "request", max_bytes=max_bytes, timeout=seconds)
    except SampleError as error:
        message = (
            f"{source_name(url)} cannot be used: it must lead to an image or video at a public address, and all of a "
            f"request together to {MAX_BODY_BYTES >> 20} MiB in {_SECONDS:g} s; or send the file as a data: URI"
        )
        raise RequestError(message, param="messages", logged=error.detail) from error
    return file.getvalue()
