"""A request for a chat completion in OpenAI's form: what it may hold, and what is asked with it.

Fields that clients send and that change no answer are passed over; fields that would change it in a way that is not
done here are refused, so that no client takes another answer for the one that it asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from erniekit.data.conversation import Conversation, SampleError
from erniekit.data.media import is_url
from erniekit.data.template import Template
from erniekit.errors import ConfigError, ErnieKitError
from erniekit.inference.conversations import to_conversation
from erniekit.inference.sampling import Sampling

_PASSED_OVER = frozenset(
    (
        *("metadata", "prediction", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
        *("service_tier", "store", "user"),
    )
)
# For each field the values that ask for nothing (beside null), and what to say of all others.
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "answers are text"),
    "frequency_penalty": ((0,), "is not supported: use repetition_penalty"),
    "function_call": ((), "is not supported: use tool_choice"),
    "functions": ((), "is not supported: use tools"),
    "logit_bias": (({},), "is not supported"),
    "logprobs": ((False,), "is not supported"),
    "modalities": ((["text"],), "answers are text"),
    "n": ((1,), "a request has one answer"),
    "parallel_tool_calls": ((True,), "the model decides how many tools it calls"),
    "presence_penalty": ((0,), "is not supported: use repetition_penalty"),
    "reasoning_effort": ((), "is not supported: the model's chat template decides whether it thinks"),
    "response_format": (({"type": "text"},), "only text is supported: nothing holds the model to a format"),
    "tool_choice": (("auto", "none"), 'must be "auto" or "none": the model cannot be made to call a tool'),
    "top_logprobs": ((0,), "is not supported"),
    "verbosity": ((), "is not supported"),
    "web_search_options": ((), "is not supported"),
}
_MEDIA = ("image_url", "video_url")


class RequestError(ErnieKitError):
    """A request that is not answered: HTTP `status`, and OpenAI's `param` and `code`."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Part):
    """include_usage: whether a stream ends with the numbers of tokens. Padding against eavesdroppers is not made."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TemplateOptions(_Part):
    """What a client tells the chat template."""

    enable_thinking: bool | None = None


class ChatRequest(_Part):
    """The fields that are heeded; see OpenAI's API reference. top_k and repetition_penalty: as in vLLM."""

    model: str | None = None
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(default=None, ge=-1)
    repetition_penalty: float | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: TemplateOptions | None = None

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
    fields = {name: value for name, value in fields.items() if value is not None and name not in _PASSED_OVER}
    for name, (nothing, message) in _ONLY.items():
        if name in fields and fields[name] not in nothing:
            raise RequestError(f"{name}: {message}", param=name)
        if name != "tool_choice":
            fields.pop(name, None)
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _wrong_field(error) from error


def _wrong_field(error: ValidationError) -> RequestError:
    details = error.errors(include_url=False)
    name = _name(details[0])
    kind = details[0]["type"]
    if kind == "extra_forbidden":
        return RequestError(f"{name}: this server does not know this field", param=name)
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
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [_safe_part(f"{where}.content.{index}", part, allow_urls) for index, part in enumerate(content)]
    return {**message, "content": parts}


def _safe_part(where: str, part: Any, allow_urls: bool) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", *_MEDIA):
        raise RequestError(
            f"{where}: must be an object of type text, image_url or video_url", param="messages"
        )
    if kind == "text":
        return {"type": "text", "text": part.get("text")}
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
    return {"type": kind, kind: {"url": url}}


def check_thinking(request: ChatRequest, template: Template) -> None:
    """Raises RequestError where a client wants thinking switched on or off, and the template has it otherwise."""
    options = request.chat_template_kwargs
    wanted = None if options is None else options.enable_thinking
    if wanted is not None and wanted != (template.thinking == "on"):
        always = "always" if template.thinking == "on" else "never"
        message = (
            f"enable_thinking: with template {template.name} the model {always} thinks (see serve --template)"
        )
        raise RequestError(message, param="chat_template_kwargs")


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
        for name in ("temperature", "top_p", "repetition_penalty")
        if (value := getattr(request, name)) is not None
    }
    if request.top_k is not None:
        chosen["top_k"] = max(request.top_k, 0)  # -1 is vLLM's word for all
    if request.seed is not None:
        chosen["seed"] = request.seed % (1 << 64)  # OpenAI's may be negative
    try:
        return replace(
            defaults,
            **chosen,
            stop=defaults.stop if request.stop is None else tuple(_texts(request.stop)),
            max_new_tokens=limit or min(defaults.max_new_tokens, room),
        )
    except ConfigError as error:
        raise RequestError(str(error)) from error


def _texts(stop: str | list[str]) -> Sequence[str]:
    return [stop] if isinstance(stop, str) else stop
