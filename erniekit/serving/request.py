"""A request for a chat completion in OpenAI's form: what it may hold, and what is asked with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from erniekit.data.chat.conversation import Conversation, SampleError
from erniekit.data.chat.template import Template
from erniekit.data.formats.fields.markers import MESSAGE_MEDIA_KEYS
from erniekit.data.formats.fields.tools import TOOL_KEYS
from erniekit.data.media.images import is_url
from erniekit.errors import ConfigError
from erniekit.generation.sampling import Sampling
from erniekit.serving.conversations import to_conversation
from erniekit.serving.fields import (
    NEUTRAL,
    PASSED_OVER,
    RequestError,
    refusal,
    unknown_field,
    without_neutral,
)
from erniekit.serving.thinking import THINKING_FIELDS, Thinking, take_thinking

_MEDIA = ("image_url", "video_url")
_WORDS = ("text", "input_text", "output_text", "refusal", "reasoning", "thinking")  # parts without a file
# Under which the reader looks for files. `detail` is OpenAI's hint of a size: pictures are sized as in training.
_SOURCES = frozenset(
    (*_MEDIA, "image", "images", "video", "videos", "frames", "url", "path", "value", "bytes")
)
_TOOL_CHOICES = ("auto", "none")


def _whole(value: Any) -> Any:
    """1.0 is 1 in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _limit(value: Any) -> Any:
    """-1 is no limit, as in llama.cpp."""
    return None if value == -1 else _whole(value)


_Whole = Annotated[int | None, BeforeValidator(_whole)]
_Limit = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_limit)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Part):
    """include_usage: whether a stream ends with the numbers of tokens. Padding against eavesdroppers is not made."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class ChatRequest(_Part):
    """The fields that are heeded; see OpenAI's API reference. top_k, min_p and repetition_penalty: as in vLLM.

    thinking: what other fields say of it.
    """

    model: str | None = None
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[_Whole, Field(ge=-1)] = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: _Limit = None
    max_completion_tokens: _Limit = None
    stop: str | list[str] | None = None
    seed: _Whole = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    thinking: Thinking = Thinking()

    @property
    def may_call(self) -> bool:
        """Whether the model is told of tools, and its calls are told as calls."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def max_new_tokens(self) -> int | None:
        """The limit that the client sets, under its new name or its old one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream is to end with the numbers of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def read_request(body: bytes) -> ChatRequest:
    """The request in a body. Raises RequestError naming the field."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError("the body must be a JSON object")
    thinking, fields = take_thinking(without_neutral(_spread(fields)))
    if "tool_choice" in fields and fields["tool_choice"] not in _TOOL_CHOICES:
        message = 'must be "auto" or "none": the model cannot be made to call a tool'
        raise refusal("tool_choice", message, fields["tool_choice"])
    try:
        return ChatRequest.model_validate({**fields, "thinking": thinking})
    except ValidationError as error:
        raise _wrong_field(error) from error


def _spread(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with those that clients pack into others.

    `extra_body` is an argument of OpenAI's client, not a field, for who writes requests by hand too. In `metadata`
    FastDeploy took fields; OpenAI's labels there are texts.
    """
    packed = fields.get("extra_body") or {}
    if not isinstance(packed, dict):
        raise refusal("extra_body", "must be an object with fields of the request", packed)
    labels = fields.get("metadata")
    if isinstance(labels, dict):
        taken = {
            name: value for name, value in labels.items() if name in _KNOWN and not isinstance(value, str)
        }
        packed = {**taken, **packed}
    for name, value in packed.items():
        if name in fields and fields[name] != value:
            raise refusal(name, f"is there twice, as {json.dumps(fields[name])[:60]} too", value)
    return {**{name: value for name, value in fields.items() if name != "extra_body"}, **packed}


_KNOWN = (frozenset(ChatRequest.model_fields) | NEUTRAL.keys() | PASSED_OVER | THINKING_FIELDS) - {"metadata"}


def _wrong_field(error: ValidationError) -> RequestError:
    details = error.errors(include_url=False)
    name = _name(details[0])
    kind = details[0]["type"]
    if kind == "extra_forbidden":
        return unknown_field(name, StreamOptions.model_fields if "." in name else _KNOWN)
    if kind == "missing":
        return RequestError(f"{name}: is missing", param=name)
    # Of a value that may be of several types, every type complains.
    found = " or ".join(
        detail["msg"].replace("Input should be", "must be") for detail in details if _name(detail) == name
    )
    return RequestError(f"{name or 'a field'}: {found}", param=name or None)


def _name(detail: ErrorDetails) -> str:
    return ".".join(str(step) for step in detail["loc"] if step not in ("str", "list[str]"))


def read_conversation(request: ChatRequest, sample_id: str, *, allow_urls: bool) -> Conversation:
    """The chat of a request. Its media are data: URIs, or with allow_urls http(s) URLs. Raises RequestError.

    Never names a file of this machine: only what is carried along or may be fetched is let through.
    """
    messages = [
        _with_safe_media(f"messages.{index}", message, allow_urls)
        for index, message in enumerate(request.messages)
    ]
    tools = request.tools if request.may_call else None
    try:
        # A base directory is only asked for paths, of which there are none.
        return to_conversation(messages, tools, base_dir=Path(), sample_id=sample_id, allow_urls=allow_urls)
    except SampleError as error:
        raise RequestError(
            error.detail, param="tools" if error.reason == "bad tools" else "messages"
        ) from error


def _with_safe_media(where: str, message: dict[str, Any], allow_urls: bool) -> dict[str, Any]:
    for key in MESSAGE_MEDIA_KEYS:
        if message.get(key):
            raise RequestError(f"{where}.{key}: is not supported: use parts in the content", param="messages")
    if any(message.get(key) for key in TOOL_KEYS):
        raise RequestError(f'{where}: tools belong in the field "tools" of the request', param="messages")
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [_safe_part(f"{where}.content.{index}", part, allow_urls) for index, part in enumerate(content)]
    return {**message, "content": parts}


def _safe_part(where: str, part: Any, allow_urls: bool) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _WORDS:
        return dict(part)
    if kind not in _MEDIA:
        found = json.dumps(kind) if isinstance(part, dict) else json.dumps(part)
        raise RequestError(
            f"{where}: must be an object of type text, image_url or video_url, it is {found[:60]}",
            param="messages",
        )
    media = part.get(kind)
    url = media.get("url") if isinstance(media, dict) else media
    if not isinstance(url, str):
        raise RequestError(f'{where}: needs "{kind}": {{"url": "data:..."}}', param="messages")
    if not url.startswith("data:") and not (allow_urls and is_url(url)):
        what = (
            "URLs are only fetched by a server that was started with --allow-urls"
            if is_url(url)
            else "files of the server are never read"
        )
        raise RequestError(f"{where}: send the file itself as a data: URI; {what}", param="messages")
    # What else the client says of the medium is for the reader, which heeds, refuses or reports it.
    others = {**part, **(media if isinstance(media, dict) else {})}
    kept = {key: value for key, value in others.items() if key not in _SOURCES and key != "detail"}
    return {**kept, "type": kind, kind: {"url": url}}


def check_thinking(request: ChatRequest, template: Template) -> None:
    """Raises RequestError where a client wants thinking switched on or off, and the template has it otherwise."""
    request.thinking.check(template)


def read_sampling(request: ChatRequest, defaults: Sampling, prompt_tokens: int, positions: int) -> Sampling:
    """How a request is answered; what it leaves out is as in `defaults`. Raises RequestError.

    A limit that the client sets must fit into the model's positions beside the prompt; the default one is made to.
    """
    room = positions - prompt_tokens
    if room < 1:
        message = f"the prompt has {prompt_tokens:,} tokens; with an answer it must fit into {positions:,} positions"
        raise RequestError(message, param="messages", code="context_length_exceeded")
    limit = request.max_new_tokens
    if limit is not None and limit > room:
        message = (
            f"the prompt has {prompt_tokens:,} tokens and the answer may have {limit:,}, but the model has "
            f"{positions:,} positions for both: ask for {room:,} at most"
        )
        raise RequestError(message, param="max_tokens", code="context_length_exceeded")
    chosen: dict[str, Any] = {
        name: value
        for name in ("temperature", "top_p", "min_p", "repetition_penalty")
        if (value := getattr(request, name)) is not None
    }
    if request.top_k is not None:
        chosen["top_k"] = max(request.top_k, 0)  # -1 is vLLM's word for all
    if request.seed is not None:
        chosen["seed"] = request.seed % (1 << 64)  # OpenAI's may be negative
    stop = _texts(request.stop)
    try:
        return replace(
            defaults,
            **chosen,
            stop=stop or defaults.stop,
            max_new_tokens=limit or min(defaults.max_new_tokens, room),
        )
    except ConfigError as error:
        raise RequestError(str(error)) from error


def _texts(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop texts; an empty one stops nothing."""
    return tuple(filter(None, [stop] if isinstance(stop, str) else stop or ()))
