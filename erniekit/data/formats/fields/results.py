"""Matches the results of tools to their calls."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from erniekit.data.chat.conversation import Message, SampleError, TextPart, ToolCallPart
from erniekit.data.formats.fields.context import SampleContext, describe_value, quoted
from erniekit.display.text import counted
from erniekit.local_files import check_json_values

# How calls begin in data that has them as text.
_WRITTEN_CALLS = ("<tool_call>", "<functioncall>")
# Keys under which a result names its call.
CALL_ID_KEYS = ("tool_call_id", "call_id", "tool_use_id")


@dataclass(frozen=True, slots=True)
class Turn:
    """A message and its place in the record, for errors. For a result, call_id and tool of its call, "" if unknown."""

    message: Message
    where: str
    call_id: str = ""
    tool: str = ""

    @property
    def calls(self) -> list[ToolCallPart]:
        """The calls of an answer."""
        return [part for part in self.message.parts if isinstance(part, ToolCallPart)]


def read_id(where: str, value: Any, sample: SampleContext) -> str:
    """The id of a call as text, "" for none. Raises SampleError."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise sample.bad(f"{where}: the id of a tool call must be a string, not {describe_value(value)}")
    return str(value)


def result_turn(
    message: Message, where: str, entry: Mapping[str, Any], sample: SampleContext, known: Collection[str] = ()
) -> Turn:
    """The result of a tool, with the name and id of the call from its entry. Raises SampleError.

    known: the ids of calls so far. A key "id" is only read if it is one of them: usually it is the message's own id.
    """
    ids = [found for key in CALL_ID_KEYS if (found := read_id(where, entry.get(key), sample))]
    if not ids and isinstance(entry.get("id"), str | int) and str(entry["id"]) in known:
        ids = [str(entry["id"])]
    name = entry.get("name")
    if name is not None and not isinstance(name, str):
        raise sample.bad(f'{where}: "name" must be a string, not {describe_value(name)}')
    return Turn(message, where, ids[0] if ids else "", name or "")


def in_order_of_calls(
    turns: Sequence[Turn], sample: SampleContext, *, may_end_with_calls: bool = True
) -> list[Message]:
    """The messages, with the results of tools in the order of their calls.

    Results follow the answer with the calls, one for each call. They are matched by the ids of the calls, without ids
    by the names of the tools, and otherwise by their order. Calls at the end of a chat may have no results, unless
    may_end_with_calls is False. Results of calls that are written as text stay in their order. Raises SampleError.
    """
    messages: list[Message] = []
    start = 0
    while start < len(turns):
        turn = turns[start]
        if turn.message.role == "tool":
            raise _fault(turn, "the result of a tool without a message before it", sample)
        end = start = start + 1
        while end < len(turns) and turns[end].message.role == "tool":
            end += 1
        results, following = turns[start:end], turns[end:]
        messages.append(turn.message)
        if turn.calls and (results or following or not may_end_with_calls):
            messages += _matched(turn, results, following, sample)
        elif results:
            text = "".join(part.text for part in turn.message.parts if isinstance(part, TextPart))
            if not any(mark in text for mark in _WRITTEN_CALLS):
                detail = f"the result of a tool, but {turn.where} has no tool_calls"
                raise _fault(results[0], detail, sample)
            sample.notice("calls are text, not tool_calls: results are not matched to them")
            messages += [result.message for result in results]
        start = end
    return messages


def _matched(
    caller: Turn, results: Sequence[Turn], following: Sequence[Turn], sample: SampleContext
) -> list[Message]:
    """One result for each call of a turn, in the order of the calls."""
    calls = caller.calls
    results = _split_message(results, len(calls), sample)
    placed = _by_id(caller, results, sample)
    rest = [result for result in results if not any(result is other for other in placed.values())]
    open_calls = [number for number in range(len(calls)) if number not in placed]
    if len(rest) > len(open_calls):
        numbers = f"{counted(len(calls), 'call')}, but there are {counted(len(results), 'result')}"
        detail = f"too many results: {caller.where} has {numbers}"
        raise _fault(rest[len(open_calls)], detail, sample)
    if len(rest) < len(open_calls):
        call = calls[open_calls[len(rest)]]
        named = f"{quoted(call.name)}, id {quoted(call.id)}" if call.id else quoted(call.name)
        before = f"before {following[0].where}" if following else "at the end"
        numbers = f"{counted(len(calls), 'call')}, {counted(len(results), 'result')}"
        detail = f"the result of its tool call {open_calls[len(rest)] + 1} ({named}) is missing {before}: {numbers}"
        raise _fault(caller, detail, sample)
    placed.update(zip(open_calls, _by_name([calls[number] for number in open_calls], rest), strict=True))
    for number, call in enumerate(calls):
        result = placed[number]
        if result.tool not in ("", call.name):
            detail = (
                f"its name {quoted(result.tool)} differs from its call in {caller.where}, {quoted(call.name)}"
            )
            raise _fault(result, detail, sample)
    return [placed[number].message for number in range(len(calls))]


def _by_id(caller: Turn, results: Sequence[Turn], sample: SampleContext) -> dict[int, Turn]:
    """The results that name their call, by the number of the call; empty if calls have no ids."""
    ids = [call.id for call in caller.calls]
    if not any(result.call_id for result in results):
        return {}
    for call_id, count in Counter(filter(None, ids)).items():
        if count > 1:
            raise _fault(caller, f"{count} of its tool calls have the id {quoted(call_id)}", sample)
    placed: dict[int, Turn] = {}
    seen = set()
    for result in results:
        if not result.call_id:
            continue
        if result.call_id in seen:
            raise _fault(result, f"a second result for tool_call_id {quoted(result.call_id)}", sample)
        seen.add(result.call_id)
        if not any(ids):
            continue
        if result.call_id not in ids:
            known = ", ".join(map(quoted, filter(None, ids)))
            detail = (
                f"tool_call_id {quoted(result.call_id)} matches none of the calls in {caller.where} ({known})"
            )
            raise _fault(result, detail, sample)
        placed[ids.index(result.call_id)] = result
    return placed


def _by_name(calls: Sequence[ToolCallPart], results: Sequence[Turn]) -> list[Turn]:
    """Results without ids in the order of their calls: by name if all names match, otherwise in their own order."""
    if Counter(call.name for call in calls) != Counter(result.tool for result in results):
        return list(results)
    left = list(results)
    return [
        left.pop(next(place for place, one in enumerate(left) if one.tool == call.name)) for call in calls
    ]


def _split_message(results: Sequence[Turn], calls: int, sample: SampleContext) -> Sequence[Turn]:
    """Splits a message with the results of parallel calls, as in LLaMA-Factory: a JSON list with one entry per call."""
    if len(results) != 1 or calls < 2 or results[0].call_id or len(results[0].message.parts) != 1:
        return results
    part = results[0].message.parts[0]
    if not isinstance(part, TextPart):
        return results
    try:
        check_json_values(part.text)
        values = json.loads(part.text)
    except (ValueError, RecursionError):
        return results
    if not isinstance(values, list) or len(values) != calls:
        return results
    sample.notice("a list of results in one message is split, one for each call")
    texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values)
    return [
        replace(results[0], message=replace(results[0].message, parts=(TextPart(text),))) for text in texts
    ]


def _fault(turn: Turn, detail: str, sample: SampleContext) -> SampleError:
    return sample.error("results do not match calls", f"{turn.where}: {detail}")
