"""Chats as a list of rounds, each a question and its answer.

[{"human", "assistant"}, ...] as in MOSS and Firefly, or [{"system", "input", "output"}, ...] as in XTuner.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from erniekit.data.chat.conversation import Message
from erniekit.data.formats.fields import turns
from erniekit.data.formats.fields.context import SampleContext, describe_value, quoted
from erniekit.data.formats.fields.keys import LOSS_SWITCHES, REASONING
from erniekit.data.formats.fields.markers import MarkedMedia

_ROUNDS = (("human", "assistant"), ("input", "output"))


def are_rounds(entries: Any) -> TypeGuard[list[Any]]:
    """Whether a chat is a list of rounds, judged by its first entry."""
    first = entries[0] if isinstance(entries, list) and entries else None
    return isinstance(first, dict) and any(all(key in first for key in keys) for keys in _ROUNDS)


def read_rounds(rounds: list[Any], marked: MarkedMedia, sample: SampleContext) -> list[Message]:
    """The messages of a list of rounds. Raises SampleError."""
    messages: list[Message] = []
    for number, entry in enumerate(rounds, 1):
        where = f"round {number}"
        if not isinstance(entry, dict):
            raise sample.bad(
                f"{where} must be an object with a question and its answer, not {describe_value(entry)}"
            )
        asked, answered = next((keys for keys in _ROUNDS if keys[0] in entry), _ROUNDS[0])
        sample.check_keys(where, "message", entry, (asked, answered, "system", *REASONING, *LOSS_SWITCHES))
        if entry.get("system") and number > 1:
            raise sample.bad(f'{where}: "system" can only be in the first round')
        question = turns.question(_question(where, entry, asked, sample), marked)
        reasoning = sample.reasoning(where, entry)
        trained = sample.loss(where, entry) is not False
        answer = turns.answer(f"{where}, {quoted(answered)}", entry.get(answered), sample, reasoning, trained)
        messages += sample.with_system(entry, [question, answer])
    return messages


def _question(where: str, entry: dict[str, Any], key: str, sample: SampleContext) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise sample.bad(f"{where}: {quoted(key)} must be a string, not {describe_value(value)}")
    return value
