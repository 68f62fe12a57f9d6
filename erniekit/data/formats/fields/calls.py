"""Tool calls, converted to one form from the forms found in data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from erniekit.data.chat.conversation import Conversation, ToolCallPart
from erniekit.data.formats.fields.arrow_nulls import clean_arguments
from erniekit.data.formats.fields.context import SampleContext, describe_value, quoted
from erniekit.data.formats.fields.keys import LOSS_SWITCHES
from erniekit.data.formats.fields.results import CALL_ID_KEYS, read_id
from erniekit.data.formats.fields.tools import json_text, parsed, says_nothing

Tools = Sequence[dict[str, Any]]
# Keys of a message that hold its calls; the second one is of OpenAI's older interface.
CALL_KEYS = ("tool_calls", "function_call")
# Keys of a call that hold its arguments: of OpenAI, Llama and Hermes, Anthropic, LangChain.
_ARGUMENTS = ("arguments", "parameters", "input", "args")
_IDS = ("id", *CALL_ID_KEYS)
_READ = frozenset(("type", "index", "function", "name", *_ARGUMENTS, *_IDS, *LOSS_SWITCHES))
_BAD = "bad tool call"


def message_calls(
    where: str, entry: dict[str, Any], sample: SampleContext, tools: Tools = ()
) -> tuple[ToolCallPart, ...]:
    """The calls next to the content of a message. Null and empty values, and such JSON text, are no calls.

    tools: the tools of the record, from `read_tools`. Raises SampleError.
    """
    given = []
    for key in CALL_KEYS:
        value = entry.get(key)
        if not says_nothing(value) and not says_nothing(
            parsed(value, f"{where}: the tool call", _BAD, sample)
        ):
            given.append(read_tool_calls(where, value, sample, tools))
    if len(given) == 2 and [*map(_meaning, given[0])] != [*map(_meaning, given[1])]:
        raise sample.error(_BAD, f"{where}: different calls in {' and '.join(CALL_KEYS)}: keep one of them")
    return given[0] if given else ()


def read_tool_calls(
    where: str, value: Any, sample: SampleContext, tools: Tools = ()
) -> tuple[ToolCallPart, ...]:
    """The calls of one message; where: its place in the record, for errors.

    value: a call, a list of calls, or the JSON text of either. A call is {"name", "arguments"}, or has these
    under "function". Arguments are a JSON object, without the nulls that the tool's schema does not allow, or JSON
    text, which is kept unchanged; missing arguments become {}. Raises SampleError.
    """
    calls = parsed(value, f"{where}: the tool call", _BAD, sample)
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list) or not calls:
        detail = (
            f'{where}: tool calls must be a list of {{"name", "arguments"}}, here is {describe_value(calls)}'
        )
        raise sample.error(_BAD, detail)
    # Arrow does not change texts.
    known = None if isinstance(value, str) else tools
    return tuple(
        _call(f"{where}, tool call {number}", call, known, sample) for number, call in enumerate(calls, 1)
    )


def _call(where: str, value: Any, tools: Tools | None, sample: SampleContext) -> ToolCallPart:
    """One call, or its JSON text. tools: None if the arguments are not cleaned."""
    if isinstance(value, str):
        value, tools = parsed(value, where, _BAD, sample), None
    if not isinstance(value, dict):
        raise sample.error(_BAD, f"{where} must be an object, not {describe_value(value)}")
    call = value if says_nothing(value.get("function")) else value["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise sample.error(_BAD, f"{where} has no name")
    sample.check_keys(where, "tool call", value, _READ)
    if call is not value:
        sample.check_keys(where, "tool call", call, _READ)
    ids = (read_id(where, entry.get(key), sample) for entry in (value, call) for key in _IDS)
    named = f"{where} ({quoted(call['name'])})"
    text = _arguments_text(named, call, tools, sample)
    return ToolCallPart(
        call["name"], text, sample.loss(where, value) is not False, next(filter(None, ids), "")
    )


def _arguments_text(where: str, call: dict[str, Any], tools: Tools | None, sample: SampleContext) -> str:
    found = {key: call[key] for key in _ARGUMENTS if not says_nothing(call.get(key))}
    if len(found) > 1:
        raise sample.error(_BAD, f"{where}: arguments in {' and '.join(found)}: keep one of them")
    arguments = next(iter(found.values()), next((call[key] for key in _ARGUMENTS if call.get(key)), None))
    value = parsed(arguments, f"{where}: the arguments", _BAD, sample)
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise sample.error(_BAD, f"{where}: arguments must be a JSON object, here is {describe_value(value)}")
    if isinstance(arguments, str):
        return arguments
    text = json_text(where, value, _BAD, sample)
    if tools is None:
        return text
    functions = (tool["function"] for tool in tools)
    schema = next((one.get("parameters") for one in functions if one["name"] == call["name"]), None)
    cleaned = json_text(where, clean_arguments(value, schema), _BAD, sample)
    if cleaned != text:
        sample.notice("nulls and floats in arguments of calls, which Arrow adds, are removed")
    return cleaned


def _meaning(call: ToolCallPart) -> tuple[str, Any]:
    return call.name, json.loads(call.arguments)


def notice_calls(conversation: Conversation, sample: SampleContext) -> None:
    """Note trained calls that do not fit the tools of the sample: of other functions, or without required arguments.

    A sample without tools may describe them in its system message.
    """
    functions = {tool["function"]["name"]: tool["function"] for tool in conversation.tools}
    if not functions:
        return
    calls = (
        part
        for message in conversation.messages
        for part in message.parts
        if isinstance(part, ToolCallPart) and message.trained and part.trained
    )
    for call in calls:
        if call.name not in functions:
            sample.notice(f"a call of {quoted(call.name)}, which is not in the tools of the sample")
            continue
        schema, given = functions[call.name].get("parameters"), json.loads(call.arguments)
        required = schema.get("required") if isinstance(schema, dict) else None
        for name in required if isinstance(required, list) else ():
            if isinstance(name, str) and name not in given:
                sample.notice(f"a call of {quoted(call.name)} without the required argument {quoted(name)}")


def split_results(where: str, entry: dict[str, Any], sample: SampleContext) -> list[dict[str, Any]]:
    """Splits a user's message with tool results (Anthropic's form): each result as a message, then the rest."""
    content = entry.get("content")
    if entry.get("role") != "user" or not isinstance(content, list) or not any(map(_is_result, content)):
        return [entry]
    results = [part for part in content if _is_result(part)]
    rest = content[len(results) :]
    if any(map(_is_result, rest)):
        raise sample.bad(f"{where}: parts of type tool_result must come before all others")
    others = {key: value for key, value in entry.items() if key not in ("role", "content")}
    entries = []
    for number, part in enumerate(results, 1):
        sample.check_keys(
            f"{where}, part {number}", "part", part, ("type", "tool_use_id", "content", "is_error")
        )
        if part.get("is_error"):
            sample.notice("results of tools that are errors (is_error) are read as any other result")
        text = "" if part.get("content") is None else part["content"]
        entries.append({**others, "role": "tool", "content": text, "tool_call_id": part.get("tool_use_id")})
    return [*entries, {**entry, "content": rest}] if rest else entries


def _is_result(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "tool_result"
