"""Preference pairs: two answers to one prompt, of which the first is preferred.

"chosen" and "rejected" beside the prompt (each a string, a message, a list of messages, or a whole chat that starts
with the prompt), ms-swift's "rejected_response" and "rejected_messages" beside a chat that ends with the chosen one, or
LLaMA-Factory's "chosen_messages" and "rejected_messages", two whole chats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from erniekit.data.conversation import Conversation, Message, Part, Role
from erniekit.data.formats.context import SampleContext
from erniekit.data.formats.markers import MarkedMedia

KEYS = ("chosen", "rejected", "rejected_response", "rejected_messages", "chosen_messages")
Pair = tuple[tuple[Message, ...], tuple[Message, ...]]


class AnswerReader(Protocol):
    """What reads the answers of a pair in the way of the record's format."""

    marked: MarkedMedia

    def answer(self, key: str, value: Any) -> list[Message]:
        """The messages of one answer."""


def is_pair(record: dict[str, Any]) -> bool:
    """Whether a record has a rejected or a chosen answer."""
    return any(record.get(key) is not None for key in KEYS)


def conversation(
    record: dict[str, Any],
    messages: list[Message] | None,
    reader: AnswerReader,
    tools: tuple[dict[str, Any], ...],
    sample: SampleContext,
) -> Conversation:
    """The Conversation of a record, a pair or not.

    messages: the chat, or the prompt of a pair; None where only the answers have it. Of a pair nothing but the two
    answers carries loss. Raises SampleError.
    """
    if not is_pair(record):
        reader.marked.check()
        return Conversation(tuple(messages or ()), sample.sample_id, tools)
    chosen, rejected = _read(record, messages, reader, sample)
    reader.marked.check()
    return Conversation(chosen, sample.sample_id, tools, rejected)


def _read(
    record: dict[str, Any], messages: list[Message] | None, reader: AnswerReader, sample: SampleContext
) -> Pair:
    if record.get("chosen_messages") is not None:
        if record.get("rejected_messages") is None or messages is not None:
            raise sample.bad('"chosen_messages" needs "rejected_messages" beside it, and no "messages"')
        chosen = reader.answer("chosen_messages", record["chosen_messages"])
        return split(chosen, reader.answer("rejected_messages", record["rejected_messages"]), sample)
    if record.get("rejected_messages") is not None and messages is not None:
        rejected = reader.answer("rejected_messages", record["rejected_messages"])
        return split(messages, rejected, sample)
    if record.get("rejected_response") is not None and messages is not None:
        if messages[-1].role != "assistant":
            raise sample.bad('with "rejected_response" the last message must be the chosen answer')
        rejected = reader.answer("rejected_response", record["rejected_response"])
        return pair(messages[:-1], messages[-1:], rejected, sample)
    answers = {}
    for key, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if record.get(key) is None:
            raise sample.bad(f'"{other}" without "{key}": a preference pair needs both')
        answers[key] = reader.answer(key, record[key])
    if answers["chosen"][0].role == "assistant" and messages is not None:
        return pair(messages, answers["chosen"], answers["rejected"], sample)
    if messages is not None and not _starts_with(answers["chosen"], messages):
        raise sample.bad('"chosen" is a whole chat, but does not start with the messages before it')
    return split(answers["chosen"], answers["rejected"], sample)


def split(chosen: Sequence[Message], rejected: Sequence[Message], sample: SampleContext) -> Pair:
    """A pair out of two whole chats, whose common messages are the prompt. Raises SampleError."""
    same = [_content(one) == _content(other) for one, other in zip(chosen, rejected, strict=False)]
    common = (*same, False).index(False)
    return pair(chosen[:common], chosen[common:], rejected[common:], sample)


def pair(
    prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message], sample: SampleContext
) -> Pair:
    """(prompt and chosen answer, rejected answer). Raises SampleError unless both can follow the prompt."""
    if [*map(_content, chosen)] == [*map(_content, rejected)]:
        raise sample.bad("the chosen and the rejected answer are the same")
    if not prompt or prompt[-1].role not in ("user", "tool"):
        found = f"the {prompt[-1].role}'s is the last" if prompt else "there is none"
        raise sample.bad(
            f"before the answers of a pair a user's or a tool's message must stand last; {found}"
        )
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[0].role != "assistant" or answer[-1].role != "assistant":
            raise sample.bad(
                f"the {name} answer must start and end with an assistant message, after the prompt"
            )
        if not answer[0].trained:
            raise sample.bad(f"the {name} answer must carry loss: its first message says that it does not")
    return (*map(context, prompt), *chosen), tuple(rejected)


def context(message: Message) -> Message:
    """A message of a prompt: its loss is taken away."""
    return replace(message, trained=False)


def _starts_with(messages: Sequence[Message], start: Sequence[Message]) -> bool:
    return [*map(_content, messages[: len(start)])] == [*map(_content, start)]


def _content(message: Message) -> tuple[Role, tuple[Part, ...]]:
    return message.role, message.parts
