"""ERNIEKit's multimodal samples: `text_info` with the media of `image_info` and `video_info`.

{"text_info": [{"text", "tag": "mask" | "no_mask", "label": optional 0 | 1, "tool_calls", "tool_response"}, ...],
 "image_info": [{"image_url": source, "matched_text_index": 0}, ...], "video_info": the same, "order": optional,
 "is_system": optional 0 | 1, "tools": optional}
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from erniekit.data.chat.conversation import Conversation, Message, Part, ReasoningPart, TextPart
from erniekit.data.formats.erniekit_media import placed_media
from erniekit.data.formats.fields.calls import CALL_KEYS, Tools, message_calls
from erniekit.data.formats.fields.context import SampleContext, describe_value, quoted
from erniekit.data.formats.fields.keys import LOSS_SWITCHES, REASONING
from erniekit.data.formats.fields.results import CALL_ID_KEYS, Turn, in_order_of_calls, result_turn
from erniekit.data.formats.fields.tools import TOOL_KEYS, json_text, record_tools, says_nothing

_KEYS = frozenset(("text_info", "image_info", "video_info", "order", "is_system", "system", *TOOL_KEYS))
_TEXT_KEYS = frozenset(
    (
        *("text", "tag", "label", *CALL_KEYS, "tool_response", *CALL_ID_KEYS, "name"),
        *REASONING,
        *LOSS_SWITCHES,
    )
)


def parse_multimodal(record: dict[str, Any], sample: SampleContext) -> Conversation:
    """One record as a Conversation.

    Texts of the user (`mask`) and the assistant (`no_mask`) alternate, the user's first; the assistant's carry loss
    unless their `label` is 0. A `mask` text with a `tool_response` is the result of a tool; several may follow each
    other. With `is_system` the first text is the system prompt; a `no_mask` text right after it is a placeholder,
    dropped as in ERNIEKit. Media are placed before the text of their `matched_text_index`, or in the given `order`,
    always before a user's text or in the result of a tool. Indices count the texts of the record. Raises SampleError.
    """
    sample.check_keys("the record", "record", record, _KEYS)
    texts = record["text_info"]
    if not isinstance(texts, list) or not texts:
        found = "an empty array" if texts == [] else describe_value(texts)
        raise sample.bad(f'"text_info" must be a list of at least one text, not {found}')
    tools = record_tools("the record", record, sample)
    is_system = sample.switch('"is_system"', record.get("is_system"), default=False)
    media = placed_media(record, len(texts), sample)
    turns = []
    for index, turn in enumerate(_turns(texts, is_system, tools, sample)):
        parts = media.get(index, ())
        if parts and (turn is None or turn.message.role not in ("user", "tool")):
            detail = "an image or video can only be placed before one"
            raise sample.bad(f"text_info[{index}] is not a user's text; {detail}")
        if turn is not None:
            message = replace(turn.message, parts=(*parts, *turn.message.parts))
            turns.append(replace(turn, message=message))
    messages = sample.with_system(record, in_order_of_calls(turns, sample))
    return Conversation(tuple(messages), sample.sample_id, tools)


def _turns(texts: list[Any], is_system: bool, tools: Tools, sample: SampleContext) -> list[Turn | None]:
    """The message of each text, without its media; None for the placeholder after a system prompt."""
    turns: list[Turn | None] = []
    expected = "mask"
    for index, entry in enumerate(texts):
        where = f"text_info[{index}]"
        if not isinstance(entry, dict):
            raise sample.bad(f'{where} must be an object with "text" and "tag", not {describe_value(entry)}')
        sample.check_keys(where, "message", entry, _TEXT_KEYS)
        tag = entry.get("tag")
        if tag not in ("mask", "no_mask"):
            raise sample.bad(
                f'{where}: "tag" must be "mask" (no loss) or "no_mask" (loss), not {quoted(tag)}'
            )
        if is_system and index == 0 and tag == "mask":
            system = Message("system", (TextPart(_text(where, entry, sample)),), trained=False)
            turns.append(Turn(system, where))
            continue
        if is_system and index == 1 and tag == "no_mask":
            turns.append(None)
            continue
        is_result = tag == "mask" and _has_result(entry)
        last = turns[-1] if turns else None
        follows_result = is_result and last is not None and last.message.role == "tool"
        if tag != expected and not follows_result:
            detail = f'tags must alternate, "mask" (user) first; here "{tag}" is out of turn'
            raise sample.bad(f"{where}: {detail}")
        if tag == "mask" and (sample.loss(where, entry) or sample.reasoning(where, entry)):
            raise sample.bad(f'{where}: only an answer ("no_mask") carries loss or has reasoning')
        if tag == "no_mask":
            turns.append(Turn(_answer(where, entry, tools, sample), where))
        elif is_result:
            result = Message("tool", (TextPart(_result(where, entry, sample)),), trained=False)
            turns.append(result_turn(result, where, entry, sample))
        else:
            turns.append(Turn(_question(where, entry, sample), where))
        expected = "no_mask" if tag == "mask" else "mask"
    return turns


def _text(where: str, entry: dict[str, Any], sample: SampleContext) -> str:
    text = entry.get("text")
    if not isinstance(text, str):
        raise sample.bad(f'{where}: "text" must be a string, not {describe_value(text)}')
    return text


def _question(where: str, entry: dict[str, Any], sample: SampleContext) -> Message:
    if message_calls(where, entry, sample):
        raise sample.error("bad tool call", f'{where}: only the assistant ("no_mask") calls tools')
    return Message("user", (TextPart(_text(where, entry, sample)),), trained=False)


def _answer(where: str, entry: dict[str, Any], tools: Tools, sample: SampleContext) -> Message:
    if _has_result(entry):
        raise sample.bad(f'{where}: the result of a tool must have the tag "mask"')
    calls = message_calls(where, entry, sample, tools)
    parts: tuple[Part, ...] = ()
    if entry.get("text") is not None or not calls:
        text = _text(where, entry, sample)
        if not text and not calls:
            raise sample.bad(f"{where}: the assistant's answer is empty")
        parts = (TextPart(text),) if text else ()
    reasoning = sample.reasoning(where, entry)
    if reasoning:
        parts = (ReasoningPart(reasoning), *parts)
    labelled = sample.switch(f'{where}: "label"', entry.get("label"), default=True)
    return Message("assistant", (*parts, *calls), labelled and sample.loss(where, entry) is not False)


def _has_result(entry: dict[str, Any]) -> bool:
    return bool(entry.get("tool_response")) and not says_nothing(entry["tool_response"])


def _result(where: str, entry: dict[str, Any], sample: SampleContext) -> str:
    """The result of a tool: `text`, or `tool_response` if that is empty; objects as JSON text."""
    for value in (entry.get("text"), entry["tool_response"]):
        if isinstance(value, str) and value:
            return value
        if isinstance(value, dict | list):
            return json_text(where, value, "bad record", sample)
    raise sample.bad(f'{where}: the result of a tool must be a string or an object, in "text"')
