"""Preference pairs: two answers to one prompt, of which the first is preferred.

Forms: "chosen" and "rejected" next to the prompt (each a string, a message, a list of messages, or a whole chat that
starts with the prompt), ms-swift's "rejected_response" or "rejected_messages" next to a chat that ends with the chosen
answer, or LLaMA-Factory's "chosen_messages" and "rejected_messages", two whole chats.
"rejected_images", "rejected_videos" and "rejected_objects" replace "images", "videos" and "objects" in the prompt of
the rejected answer; alone they make a pair of one answer to two prompts. "rejected_prompt" replaces that whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from erniekit.data.chat.conversation import Conversation, ImagePart, Message, Part, Role, VideoPart
from erniekit.data.formats.fields import objects
from erniekit.data.formats.fields.context import SampleContext
from erniekit.data.formats.fields.markers import REJECTED_MEDIA_KEYS, MarkedMedia

_ANSWERS = (
    "chosen",
    "rejected",
    "rejected_response",
    "rejected_messages",
    "rejected_prompt",
    "chosen_messages",
)
# Keys with media and objects of the rejected answer; empty values are ignored.
_OTHERS = (*REJECTED_MEDIA_KEYS, "rejected_objects")
KEYS = (*_ANSWERS, *_OTHERS)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers, each with its prompt; the prompts may differ only in their images and videos."""

    prompt: Sequence[Message]
    chosen: Sequence[Message]
    rejected_prompt: Sequence[Message]
    rejected: Sequence[Message]


class AnswerReader(Protocol):
    """Reads the answers of a pair in the record's format."""

    marked: MarkedMedia
    tools: tuple[dict[str, Any], ...]

    def answer(self, key: str, value: Any) -> list[Message]:
        """The messages of one answer."""

    def chat(self, where: str, key: str, entries: Any) -> list[Message]:
        """A list of messages; where: the name of a message in errors."""

    def of_rejected(self) -> AnswerReader:
        """The reader of the rejected answer: itself, unless that answer has different media."""


def is_pair(record: dict[str, Any]) -> bool:
    """Whether a record has a rejected or chosen answer, or media of a rejected answer."""
    return any(record.get(key) is not None for key in _ANSWERS) or any(record.get(key) for key in _OTHERS)


def conversation(
    record: dict[str, Any],
    messages: list[Message] | None,
    reader: AnswerReader,
    sample: SampleContext,
) -> Conversation:
    """The Conversation of a record, whether it is a preference pair or not.

    messages: the chat, or the prompt of a pair; None if the prompt is only in the answers. In a pair only the two
    answers carry loss. Raises SampleError.
    """
    if not is_pair(record):
        reader.marked.check()
        return Conversation(
            tuple(objects.fill(record, messages or (), sample)), sample.sample_id, reader.tools
        )
    found = _read(record, messages, reader, sample)
    reader.marked.check()
    start, other_start = len(found.prompt), len(found.rejected_prompt)
    chosen, rejected = objects.fill_pair(
        record, (*found.prompt, *found.chosen), (*found.rejected_prompt, *found.rejected), sample
    )
    filled = Pair(chosen[:start], chosen[start:], rejected[:other_start], rejected[other_start:])
    return of_pair(filled, reader.tools, sample)


def of_pair(pair: Pair, tools: tuple[dict[str, Any], ...], sample: SampleContext) -> Conversation:
    """The Conversation of a pair. Raises SampleError if both answers and prompts are the same."""
    same_prompt = _contents(pair.prompt) == _contents(pair.rejected_prompt)
    if same_prompt and _contents(pair.chosen) == _contents(pair.rejected):
        raise sample.bad("the chosen and the rejected answer are the same")
    return Conversation(
        (*map(context, pair.prompt), *pair.chosen),
        sample.sample_id,
        tools,
        tuple(pair.rejected),
        () if same_prompt else tuple(map(context, pair.rejected_prompt)),
    )


def _read(
    record: dict[str, Any], messages: list[Message] | None, reader: AnswerReader, sample: SampleContext
) -> Pair:
    other = reader.of_rejected()
    if record.get("chosen_messages") is not None:
        if record.get("rejected_messages") is None or messages is not None:
            raise sample.bad('"chosen_messages" needs "rejected_messages", and no "messages"')
        chosen = reader.answer("chosen_messages", record["chosen_messages"])
        rejected = other.answer("rejected_messages", record["rejected_messages"])
        other.marked.check()
        return split(chosen, rejected, sample)
    if record.get("rejected_messages") is not None and messages is not None:
        rejected = other.answer("rejected_messages", record["rejected_messages"])
        other.marked.check()
        return split(messages, rejected, sample)
    if messages is not None and (record.get("rejected_response") is not None or not _has_answers(record)):
        # As in ms-swift, everything after the last question is the chosen answer.
        start = _start_of_answer(messages)
        prompt, chosen = messages[:start], messages[start:]
        if not chosen or chosen[-1].role != "assistant":
            key = next(key for key in KEYS if record.get(key))
            raise sample.bad(f'with "{key}" the last message must be the chosen answer')
        rejected_prompt = _prompt_of_rejected(record, prompt, reader, other)
        rejected = chosen
        if record.get("rejected_response") is not None:
            rejected = other.answer("rejected_response", record["rejected_response"])
        other.marked.check()
        return pair(prompt, chosen, rejected_prompt, rejected, sample)
    answers = {}
    rejected_prompt = [] if messages is None else _prompt_of_rejected(record, messages, reader, other)
    for key, missing, branch in (("chosen", "rejected", reader), ("rejected", "chosen", other)):
        if record.get(key) is None:
            raise sample.bad(f'"{missing}" without "{key}": a preference pair needs both')
        answers[key] = branch.answer(key, record[key])
    other.marked.check()
    if answers["chosen"][0].role == "assistant" and messages is not None:
        return pair(messages, answers["chosen"], rejected_prompt, answers["rejected"], sample)
    if messages is not None and not _starts_with(answers["chosen"], messages):
        raise sample.bad('"chosen" is a whole chat, but does not start with the messages before it')
    return split(answers["chosen"], answers["rejected"], sample)


def _has_answers(record: dict[str, Any]) -> bool:
    return record.get("chosen") is not None or record.get("rejected") is not None


def _prompt_of_rejected(
    record: dict[str, Any], prompt: list[Message], reader: AnswerReader, other: AnswerReader
) -> list[Message]:
    """The prompt of the rejected answer: its own, or the prompt of the chosen answer with its media replaced."""
    if record.get("rejected_prompt") is not None:
        return other.chat('"rejected_prompt", message', "rejected_prompt", record["rejected_prompt"])
    if other is reader:
        return prompt
    return [
        replace(message, parts=tuple(other.marked.in_place_of(reader.marked, part) for part in message.parts))
        for message in prompt
    ]


def _start_of_answer(messages: Sequence[Message]) -> int:
    """Number of messages up to the last user message."""
    return max((index for index, message in enumerate(messages, 1) if message.role == "user"), default=0)


def split(chosen: Sequence[Message], rejected: Sequence[Message], sample: SampleContext) -> Pair:
    """A pair from two whole chats: the prompt is their common beginning, except for media. Raises SampleError."""
    same = [_form(one) == _form(other) for one, other in zip(chosen, rejected, strict=False)]
    common = (*same, False).index(False)
    if common == len(chosen) == len(rejected):
        common = _start_of_answer(chosen)
    return pair(chosen[:common], chosen[common:], rejected[:common], rejected[common:], sample)


def pair(
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected_prompt: Sequence[Message],
    rejected: Sequence[Message],
    sample: SampleContext,
) -> Pair:
    """A pair. Raises SampleError unless both answers can follow their prompts."""
    for before in (prompt, rejected_prompt):
        if not before or before[-1].role not in ("user", "tool"):
            found = f"the last is the {before[-1].role}'s" if before else "there is none"
            raise sample.bad(
                f"the last message before the answers of a pair must be a user's or a tool's; {found}"
            )
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[0].role != "assistant" or answer[-1].role != "assistant":
            raise sample.bad(
                f"the {name} answer must start and end with an assistant message, after the prompt"
            )
        if not answer[0].trained:
            raise sample.bad(f"the {name} answer must carry loss, but its first message has none")
    return Pair(prompt, chosen, rejected_prompt, rejected)


def context(message: Message) -> Message:
    """A message of a prompt, which is not trained."""
    return replace(message, trained=False)


def _starts_with(messages: Sequence[Message], start: Sequence[Message]) -> bool:
    return _contents(messages[: len(start)]) == _contents(start)


def _contents(messages: Sequence[Message]) -> list[tuple[Role, tuple[Part, ...]]]:
    return [(message.role, message.parts) for message in messages]


def _form(message: Message) -> tuple[Role, list[Part | type]]:
    """The texts of a message and the positions of its images and videos."""
    parts: list[Part | type] = [
        type(part) if isinstance(part, ImagePart | VideoPart) else part for part in message.parts
    ]
    return message.role, parts
