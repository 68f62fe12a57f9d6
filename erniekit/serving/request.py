"""A chat completion request of OpenAI's API: its fields, its conversation and its sampling."""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from erniekit.data.chat.conversation import Conversation, SampleError
from erniekit.data.formats.fields.markers import MESSAGE_MEDIA_KEYS
from erniekit.data.formats.fields.tools import TOOL_KEYS
from erniekit.data.media.access import NO_URLS, MediaAccess
from erniekit.data.media.fetch import PRIVATE
from erniekit.data.media.images import is_url
from erniekit.errors import ConfigError
from erniekit.generation.sampling import Sampling
from erniekit.local_files import parse_json
from erniekit.serving.conversations import to_conversation
from erniekit.serving.fields import (
    IGNORED,
    NEUTRAL,
    RequestError,
    refusal,
    unknown_field,
    without_neutral,
)
from erniekit.serving.limits import check_values
from erniekit.serving.thinking import THINKING_FIELDS, Thinking, take_thinking

_MEDIA = ("image_url", "video_url")
_TEXT_TYPES = ("text", "input_text", "output_text", "refusal", "reasoning", "thinking")  # parts without media
# Keys under which the reader looks for media. `detail` is OpenAI's size hint: images are resized as in training.
_SOURCES = frozenset(
    (*_MEDIA, "image", "images", "video", "videos", "frames", "url", "path", "value", "bytes")
)
_TOOL_CHOICES = ("auto", "none")
# Every token of an answer is compared with every stop text.
_MAX_STOPS, _MAX_STOP_CHARACTERS = 64, 10_000


def _whole(value: Any) -> Any:
    """JSON's 1.0 as 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _limit(value: Any) -> Any:
    """-1 means no limit, as in llama.cpp."""
    return None if value == -1 else _whole(value)


_Whole = Annotated[int | None, BeforeValidator(_whole)]
_Limit = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_limit)]
# fail_fast: 500,000 wrong items would take 500 MB, with an error for each.
_Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Part):
    """include_usage: whether a stream ends with the token counts. Obfuscation (padding) is ignored."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class ChatRequest(_Part):
    """The supported fields; see OpenAI's API reference. top_k, min_p and repetition_penalty: as in vLLM.

    thinking: from the fields of `THINKING_FIELDS`.
    """

    model: str | None = None
    messages: Annotated[_Objects, Field(min_length=1)]
    tools: _Objects | None = None
    tool_choice: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[_Whole, Field(ge=-1)] = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: _Limit = None
    max_completion_tokens: _Limit = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    seed: _Whole = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    thinking: Thinking = Thinking()

    @property
    def may_call(self) -> bool:
        """Whether the prompt has the tools, and tool calls in the answer are parsed."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def max_new_tokens(self) -> int | None:
        """The client's limit, under OpenAI's new name or its old one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def read_request(body: bytes) -> ChatRequest:
    """Parses a body. Raises RequestError naming the field."""
    check_values(body)
    try:
        fields = parse_json(body)
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError("the body must be a JSON object")
    thinking, fields = take_thinking(without_neutral(_spread(fields)))
    if "tool_choice" in fields and fields["tool_choice"] not in _TOOL_CHOICES:
        message = 'must be "auto" or "none": the model cannot be forced to call a tool'
        raise refusal("tool_choice", message, fields["tool_choice"])
    _refuse_unknown(fields, ChatRequest.model_fields, _KNOWN)
    options = fields.get("stream_options")
    if isinstance(options, dict):
        _refuse_unknown(options, StreamOptions.model_fields, StreamOptions.model_fields, "stream_options.")
    try:
        return ChatRequest.model_validate({**fields, "thinking": thinking})
    except ValidationError as error:
        raise _wrong_field(error) from error


def _spread(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with those that clients put into other fields.

    `extra_body` is an argument of OpenAI's client, but people also send it as a field. FastDeploy accepts fields in
    `metadata`; OpenAI's values there are strings.
    """
    nested = fields.get("extra_body") or {}
    if not isinstance(nested, dict):
        raise refusal("extra_body", "must be an object with fields of the request", nested)
    labels = fields.get("metadata")
    if isinstance(labels, dict):
        taken = {
            name: value for name, value in labels.items() if name in _KNOWN and not isinstance(value, str)
        }
        nested = {**taken, **nested}
    for name, value in nested.items():
        if name in fields and fields[name] != value:
            raise refusal(name, f"is sent twice, also as {json.dumps(fields[name])[:60]}", value)
    return {**{name: value for name, value in fields.items() if name != "extra_body"}, **nested}


_KNOWN = (frozenset(ChatRequest.model_fields) | NEUTRAL.keys() | IGNORED | THINKING_FIELDS) - {"metadata"}


def _refuse_unknown(
    fields: Iterable[str], supported: Container[str], known: Collection[str], prefix: str = ""
) -> None:
    """Raise RequestError for the first field that is not supported. Pydantic would make an error for each of them."""
    for name in fields:
        if name not in supported:
            raise unknown_field(prefix + name, known)


def _wrong_field(error: ValidationError) -> RequestError:
    details = error.errors(include_url=False)
    name = _name(details[0])
    if details[0]["type"] == "missing":
        return RequestError(f"{name}: is missing", param=name)
    # A value that may have several types has an error for each of them.
    found = " or ".join(
        detail["msg"].replace("Input should be", "must be") for detail in details if _name(detail) == name
    )
    return RequestError(f"{name or 'a field'}: {found}", param=name or None)


def _name(detail: ErrorDetails) -> str:
    return ".".join(str(step) for step in detail["loc"] if step not in ("str", "list[str]"))


def read_conversation(request: ChatRequest, sample_id: str, access: MediaAccess = NO_URLS) -> Conversation:
    """The conversation of a request. Its media are data: URIs, or http(s) URLs where access has them.

    Raises RequestError. Paths never get through: a client must not read the server's files.
    """
    messages = [
        _with_safe_media(f"messages.{index}", message, access)
        for index, message in enumerate(request.messages)
    ]
    tools = request.tools if request.may_call else None
    try:
        # The base directory is for paths, and there are none.
        return to_conversation(messages, tools, base_dir=Path(), sample_id=sample_id, access=access)
    except SampleError as error:
        raise RequestError(
            error.detail, param="tools" if error.reason == "bad tools" else "messages"
        ) from error


def _with_safe_media(where: str, message: dict[str, Any], access: MediaAccess) -> dict[str, Any]:
    for key in MESSAGE_MEDIA_KEYS:
        if message.get(key):
            raise RequestError(f"{where}.{key}: is not supported: use parts in the content", param="messages")
    if any(message.get(key) for key in TOOL_KEYS):
        raise RequestError(f'{where}: tools belong in the field "tools" of the request', param="messages")
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [_safe_part(f"{where}.content.{index}", part, access) for index, part in enumerate(content)]
    return {**message, "content": parts}


def _safe_part(where: str, part: Any, access: MediaAccess) -> dict[str, Any]:
    part_type = part.get("type") if isinstance(part, dict) else None
    if part_type in _TEXT_TYPES:
        return dict(part)
    if part_type not in _MEDIA:
        found = json.dumps(part_type) if isinstance(part, dict) else json.dumps(part)
        raise RequestError(
            f"{where}: must be an object of type text, image_url or video_url, not {found[:60]}",
            param="messages",
        )
    media = part.get(part_type)
    url = media.get("url") if isinstance(media, dict) else media
    if not isinstance(url, str):
        raise RequestError(f'{where}: needs "{part_type}": {{"url": "data:..."}}', param="messages")
    if not url.startswith("data:") and not (
        access.urls != "none" and is_url(url) and not url.startswith(PRIVATE)
    ):
        what = (
            "URLs are only fetched by a server that was started with --allow-urls"
            if is_url(url)
            else "files of the server are never read"
        )
        raise RequestError(f"{where}: send the file itself as a data: URI; {what}", param="messages")
    # The reader handles, refuses or reports the other keys.
    others = {**part, **(media if isinstance(media, dict) else {})}
    kept = {key: value for key, value in others.items() if key not in _SOURCES and key != "detail"}
    return {**kept, "type": part_type, part_type: {"url": url}}


def read_sampling(request: ChatRequest, defaults: Sampling, prompt_tokens: int, positions: int) -> Sampling:
    """The sampling of a request, with `defaults` for missing fields. Raises RequestError.

    Prompt and answer must fit into the model's positions: a larger limit from the client is an error, a larger
    default is reduced.
    """
    room = positions - prompt_tokens
    if room < 1:
        message = f"the prompt has {prompt_tokens:,} tokens; prompt and answer must fit into {positions:,} positions"
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
        chosen["top_k"] = max(request.top_k, 0)  # -1 means all, as in vLLM
    if request.seed is not None:
        chosen["seed"] = request.seed % (1 << 64)  # it may be negative in OpenAI's API
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
    """Stop texts without empty ones, which stop nothing. Raises RequestError for too many."""
    texts = tuple(filter(None, [stop] if isinstance(stop, str) else stop or ()))
    if len(texts) > _MAX_STOPS or sum(map(len, texts)) > _MAX_STOP_CHARACTERS:
        message = f"stop: at most {_MAX_STOPS} texts, of {_MAX_STOP_CHARACTERS:,} characters together"
        raise RequestError(message, param="stop")
    return texts
