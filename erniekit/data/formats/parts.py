"""Message content that is a list of parts: texts, reasoning, images and videos."""

from __future__ import annotations

from typing import Any

from erniekit.data.chat.conversation import MediaKind, Part, ReasoningPart, Role, TextPart
from erniekit.data.formats.fields.calls import Tools, read_tool_calls
from erniekit.data.formats.fields.context import SampleContext, describe_value, keys_of, quoted
from erniekit.data.formats.fields.keys import LOSS_SWITCHES
from erniekit.data.formats.fields.markers import MarkedMedia
from erniekit.data.formats.fields.media_options import IMAGE_KEYS, VIDEO_KEYS, with_options

# The key of the text in a part of each type.
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_REASONING = ("reasoning", "thinking")
_MEDIA = ("image", "image_url", "video", "video_url")
_CALLS = (
    "tool_call",  # LLaMA-Factory's; the value is a call or a list of calls
    "tool_use",  # Anthropic's, as is tool_result, which `calls.split_results` takes out
)
_TYPES = ("text", *_MEDIA, *_REASONING, *_CALLS)
_UNSUPPORTED = ("audio", "input_audio", "file")


def read_part(
    where: str, role: Role, part: Any, marked: MarkedMedia, sample: SampleContext, tools: Tools = ()
) -> tuple[Part, ...]:
    """The parts of one entry of a message's content, in most cases one.

    where: its place in the record, for errors; tools: the tools of the record. The content of a part is under the
    name of its type or, as in LLaMA-Factory's files, under "value". Raises SampleError.
    """
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        found = "the part is" if kind is None else f"not {quoted(kind)} in"
        raise sample.bad(f"{where}: type must be one of {', '.join(_TYPES)}; {found} {describe_value(part)}")
    if kind in _TEXTS:
        return (_text(where, role, part, _TEXTS[kind], sample),)
    if kind in _REASONING:
        return (_reasoning(where, role, part, kind, sample),)
    if kind in _MEDIA:
        return (_media(where, role, part, kind, marked, sample),)
    if kind in _CALLS:
        if role != "assistant":
            raise sample.error("bad tool call", f"{where}: only the assistant calls tools, not the {role}")
        if kind == "tool_use":
            return read_tool_calls(where, part, sample, tools)
        sample.check_keys(where, "part", part, ("type", kind, "value"))
        return read_tool_calls(where, part.get(kind) or part.get("value"), sample, tools)
    if kind == "tool_result":
        raise sample.bad(
            f"{where}: parts of type tool_result belong in user messages, not in one of the {role}"
        )
    if kind in _UNSUPPORTED:
        raise sample.error("not supported", f'{where}: parts of type "{kind}" are not supported')
    raise sample.bad(f"{where}: type must be one of {', '.join(_TYPES)}, not {quoted(kind)}")


def _text(where: str, role: Role, part: dict[str, Any], key: str, sample: SampleContext) -> TextPart:
    key = key if part.get(key) is not None else "value" if part.get("value") is not None else key
    sample.check_keys(where, "part", part, ("type", key, *LOSS_SWITCHES))
    if not isinstance(part.get(key), str):
        raise sample.bad(f'{where}: "{key}" must be a string, not {describe_value(part.get(key))}')
    return TextPart(part[key], _trained(where, role, part, sample))


def _reasoning(
    where: str, role: Role, part: dict[str, Any], kind: str, sample: SampleContext
) -> ReasoningPart:
    if role != "assistant":
        raise sample.bad(f"{where}: only an assistant message has reasoning, not one of the {role}")
    keys = (kind, "text", "reasoning", "thinking", "value")
    # Anthropic's thinking blocks have a signature, which is not text.
    sample.check_keys(where, "part", part, ("type", "signature", *keys, *LOSS_SWITCHES))
    text = next((part[key] for key in keys if part.get(key) is not None), None)
    if not isinstance(text, str):
        raise sample.bad(f'{where}: "{kind}" must be a string, not {describe_value(text)}')
    return ReasoningPart(text, _trained(where, role, part, sample))


def _trained(where: str, role: Role, part: dict[str, Any], sample: SampleContext) -> bool:
    trained = sample.loss(where, part)
    if trained and role != "assistant":
        raise sample.bad(f"{where}: only the assistant's parts carry loss, not the {role}'s")
    return trained is None or trained


def _media(
    where: str, role: Role, part: dict[str, Any], kind: str, marked: MarkedMedia, sample: SampleContext
) -> Part:
    is_video = kind.startswith("video")
    noun = "a video" if is_video else "an image"
    if role not in ("user", "tool"):
        raise sample.bad(
            f"{where}: {noun} can only be in a user message or the result of a tool, not in one of the {role}"
        )
    options = VIDEO_KEYS if is_video else IMAGE_KEYS
    keys = (kind, "url", "path", "value")
    sample.check_keys(where, "part", part, ("type", *keys, *options))
    source = next((part[key] for key in keys if part.get(key) is not None), None)
    if source is None:
        listed: MediaKind = "video" if is_video else "image"
        found = marked.take(listed) if kind == listed and marked.has(listed) else None
        if found is None:
            raise sample.bad(f'{where}: a part of type {kind} needs the key "{kind}", it has {keys_of(part)}')
        media = found
    else:
        media = sample.video(where, source) if is_video else sample.image(where, source)
    return with_options(where, media, part, sample.bad)
