"""Reads questions, answers and the turns before them, for formats with one question and answer per record."""

from __future__ import annotations

from typing import Any

from erniekit.data.chat.conversation import Message, ReasoningPart, TextPart
from erniekit.data.formats.fields import preference
from erniekit.data.formats.fields.context import SampleContext, describe_value
from erniekit.data.formats.fields.markers import MarkedMedia


def question(text: str, marked: MarkedMedia) -> Message:
    """A user's message; marks in its text are replaced by the record's media."""
    return Message("user", marked.split(text), trained=False)


def reasoning(record: dict[str, Any], sample: SampleContext) -> str:
    """The reasoning next to the answer of a record, empty if there is none. Raises SampleError."""
    found = sample.reasoning("the record", record)
    if found and preference.is_pair(record):
        raise sample.bad(
            "reasoning next to the answers of a pair: put it into the message that it belongs to"
        )
    return found


def answer(
    where: str, value: Any, sample: SampleContext, reasoning: str = "", trained: bool = True
) -> Message:
    """The assistant's message. Raises SampleError if the value is empty or not a string."""
    if not isinstance(value, str):
        raise sample.bad(f"{where} must be a string, not {describe_value(value)}")
    if not value:
        raise sample.bad(f"{where}: the assistant's answer is empty")
    thought = (ReasoningPart(reasoning),) if reasoning else ()
    return Message("assistant", (*thought, TextPart(value)), trained)


def history(record: dict[str, Any], marked: MarkedMedia, sample: SampleContext) -> list[Message]:
    """The messages of a record's `history`, a list of [question, answer]. Raises SampleError."""
    turns = record.get("history")
    if turns is None:
        return []
    if not isinstance(turns, list):
        raise sample.bad(f'"history" must be a list of [question, answer], not {describe_value(turns)}')
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, list) or len(turn) != 2 or not isinstance(turn[0], str):
            raise sample.bad(
                f'"history", turn {number} must be two strings, [question, answer], not {describe_value(turn)}'
            )
        messages.append(question(turn[0], marked))
        messages.append(answer(f'"history", turn {number}', turn[1], sample))
    return messages
