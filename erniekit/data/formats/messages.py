"""Format "messages": chats in the form of OpenAI's API, with media as in LLaMA-Factory and ms-swift.

{"messages": [{"role": "system" | "user" | "assistant" | "tool", "content": string or list of parts,
               "tool_calls", "tool_call_id", "reasoning_content", "loss": all optional}],
 "tools", "system", "images", "videos": optional,
 "chosen" and "rejected": optional, the two answers of a preference pair}
or OpenAI's preference file: {"input": {"messages", "tools"}, "preferred_output", "non_preferred_output"}
Parts: {"type": "text", "text"}, {"type": "image_url", "image_url": {"url"} or string}, {"type": "image", "image"},
       {"type": "video_url", "video_url": {"url"} or string}, {"type": "video", "video": source or list of frames}
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from erniekit.data.chat.conversation import (
    Conversation,
    Message,
    Part,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallPart,
)
from erniekit.data.formats.fields import objects, preference
from erniekit.data.formats.fields.calls import CALL_KEYS, message_calls, read_tool_calls, split_results
from erniekit.data.formats.fields.context import SampleContext, describe_value, keys_of, quoted
from erniekit.data.formats.fields.keys import LOSS_SWITCHES, REASONING
from erniekit.data.formats.fields.markers import (
    MEDIA_KEYS,
    MESSAGE_MEDIA_KEYS,
    REJECTED_MEDIA_KEYS,
    MarkedMedia,
)
from erniekit.data.formats.fields.results import CALL_ID_KEYS, Turn, in_order_of_calls, result_turn
from erniekit.data.formats.fields.tools import TOOL_KEYS, json_text, record_tools
from erniekit.data.formats.parts import read_part
from erniekit.data.formats.plain_text import plain_text

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    "tool_call": "assistant",
    "tool_response": "tool",
}
_ALLOWED_ROLES = "system, user, assistant, tool"
# ms-swift's role for a message that contains only tool calls.
CALL_ROLE = "tool_call"
_MESSAGE_KEYS = frozenset(
    ("role", "content", "refusal", *CALL_KEYS, *REASONING, *LOSS_SWITCHES, *MESSAGE_MEDIA_KEYS)
)
# Further keys of messages of some roles.
_MORE_KEYS: dict[Role, frozenset[str]] = {
    "tool": frozenset((*CALL_ID_KEYS, "name")),
    "system": frozenset(TOOL_KEYS),
}
_PREFERENCE_FILE = ("input", "preferred_output", "non_preferred_output")
_KEYS = frozenset(("messages", "system", *TOOL_KEYS, *MEDIA_KEYS, *preference.KEYS))
# Converts a message of another dialect to OpenAI's form: (where, entry) -> entry
Translate = Callable[[str, dict[str, Any]], dict[str, Any]]


def parse_messages(record: dict[str, Any], sample: SampleContext) -> Conversation:
    """One record as a Conversation.

    If a user's content is a string, each `<image>` or `<video>` in it is a mark for the next of the record's `images`
    or `videos`; their numbers must be equal. If the record has media, marks in tool results count too. In a list of
    parts, marks are plain text, and {"type": "image"} without a source takes the next of `images`.
    An assistant message carries loss unless one of its LOSS_SWITCHES is false or the record's `label`, a list with 0 or
    1 for each answer, has 0 for it; its `reasoning_content` comes before its text. Results of tools are put in the
    order of their calls: see `in_order_of_calls`. A single assistant message is text for continued pre-training, as in
    ms-swift's files. Preference pairs: see `preference`. Raises SampleError.
    """
    if record.get("preferred_output") is not None or record.get("non_preferred_output") is not None:
        record = _preference_file(record, sample)
    label = record.get("label")
    sample.check_keys("the record", "record", record, _KEYS | {"label"} if isinstance(label, list) else _KEYS)
    reader = MessageReader(record, sample)
    if record.get("messages") is None and preference.is_pair(record):
        prompt = None
    else:
        messages = reader.chat("message", "messages", record.get("messages"))
        prompt = _labelled(sample.with_system(record, messages), label, sample)
    return chat_or_text(record, prompt, reader, sample)


def _preference_file(record: dict[str, Any], sample: SampleContext) -> dict[str, Any]:
    """A record of OpenAI's preference fine-tuning, converted to the keys of this format."""
    asked = record.get("input")
    if not isinstance(asked, dict):
        raise sample.bad(f'"input" must be an object with "messages", not {describe_value(asked)}')
    sample.check_keys('"input"', "record", asked, ("messages", "tools"))
    others = {key: value for key, value in record.items() if key not in _PREFERENCE_FILE}
    answers = {"chosen": record.get("preferred_output"), "rejected": record.get("non_preferred_output")}
    return {**others, **answers, "messages": asked.get("messages"), "tools": asked.get("tools")}


def chat_or_text(
    record: dict[str, Any],
    messages: list[Message] | None,
    reader: MessageReader,
    sample: SampleContext,
) -> Conversation:
    """The Conversation of a record's messages; a single assistant message is text for continued pre-training.

    messages: see `preference.conversation`. ms-swift's files have such text in this form; as a chat it would be an
    answer without a question. Raises SampleError.
    """
    if messages is None or preference.is_pair(record) or [one.role for one in messages] != ["assistant"]:
        return preference.conversation(record, messages, reader, sample)
    reader.marked.check()
    parts = objects.fill(record, messages, sample)[0].parts
    if reader.tools or not all(isinstance(part, TextPart) for part in parts):
        raise sample.bad(
            "a lone assistant message is text for continued pre-training, which has no tools, calls or reasoning: "
            "put the question before it as a user message"
        )
    sample.notice("a lone assistant message is read as text for continued pre-training")
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    return plain_text(text, sample, trained=messages[0].trained)


class MessageReader:
    """Reads the messages of one record.

    translate: converts a message of another dialect to this format. rejected: reads the rejected answer of a pair,
    which may have different media. tools: the tools of the record or of its system message.
    """

    def __init__(
        self,
        record: dict[str, Any],
        sample: SampleContext,
        translate: Translate | None = None,
        *,
        rejected: bool = False,
    ) -> None:
        self.marked = MarkedMedia(record, sample, rejected=rejected)
        self.tools = record_tools("the record", record, sample)
        self._rejected = rejected
        self._record = record
        self._sample = sample
        self._translate = translate

    def chat(self, where: str, key: str, entries: Any, *, may_end_with_calls: bool = True) -> list[Message]:
        """A list of messages; where: the name of a message in errors, before its number."""
        if not isinstance(entries, list) or not entries:
            found = "an empty array" if entries == [] else describe_value(entries)
            raise self._sample.bad(f'"{key}" must be a list of at least one message, not {found}')
        turns: list[Turn] = []
        ids: set[str] = set()
        for number, entry in enumerate(entries, 1):
            place = f"{where} {number}"
            for one in split_results(place, self._translated(place, entry), self._sample):
                turn, is_call = self._turn(place, one, ids)
                ids.update(call.id for call in turn.calls if call.id)
                if is_call and turns and turns[-1].message.role == "assistant":
                    # In dialects with calls as separate messages, they and the text before them are one turn.
                    turns[-1] = replace(turns[-1], message=_joined(turns[-1].message, turn.message))
                else:
                    turns.append(turn)
        return in_order_of_calls(turns, self._sample, may_end_with_calls=may_end_with_calls)

    def answer(self, key: str, value: Any) -> list[Message]:
        """One answer of a preference pair: a string, a message, or a list of messages.

        A list that does not start with the assistant is a whole chat; its marks are counted separately.
        """
        where = f'"{key}"'
        if isinstance(value, str):
            return [
                MessageReader({}, self._sample)
                ._turn(where, {"role": "assistant", "content": value})[0]
                .message
            ]
        if isinstance(value, dict):
            return [self._turn(where, self._translated(where, value))[0].message]
        if isinstance(value, list) and value and self._begins_chat(value[0]):
            whole = MessageReader(self._record, self._sample, self._translate, rejected=self._rejected)
            whole.tools = self.tools
            messages = whole.chat(f"{where}, message", key, value)
            whole.marked.check()
            self.marked, self.tools = whole.marked, whole.tools
            return messages
        return self.chat(f"{where}, message", key, value)

    def of_rejected(self) -> MessageReader:
        """The reader of the rejected answer of a pair: itself, unless that answer has different media."""
        if any(self._record.get(key) for key in REJECTED_MEDIA_KEYS):
            return MessageReader(self._record, self._sample, self._translate, rejected=True)
        return self

    def _begins_chat(self, entry: Any) -> bool:
        if isinstance(entry, dict) and self._translate is not None:
            entry = self._translate("the first message", entry)
        return isinstance(entry, dict) and entry.get("role") in ("system", "developer", "user")

    def _translated(self, where: str, entry: Any) -> dict[str, Any]:
        if not isinstance(entry, dict):
            raise self._sample.bad(
                f"{where} must be an object with role and content, not {describe_value(entry)}"
            )
        return entry if self._translate is None else self._translate(where, entry)

    def _turn(self, where: str, entry: dict[str, Any], ids: Collection[str] = ()) -> tuple[Turn, bool]:
        """A message, and whether it consists only of calls, in a dialect with calls as separate messages.

        ids: the ids of the calls before it.
        """
        role = self._role(where, entry)
        self._sample.check_keys(where, "message", entry, _MESSAGE_KEYS | _MORE_KEYS.get(role, frozenset()))
        if entry["role"] == CALL_ROLE:
            parts: tuple[Part, ...] = read_tool_calls(where, entry.get("content"), self._sample, self.tools)
            return Turn(Message(role, parts, self._trained(where, role, entry, parts)), where), True
        calls = message_calls(where, entry, self._sample, self.tools)
        if calls and role != "assistant":
            raise self._sample.error(
                "bad tool call", f"{where}: only the assistant calls tools, not the {role}"
            )
        parts = (*self._reasoning(where, role, entry), *self._content(where, role, entry, bool(calls)))
        if role == "assistant":
            parts = self._answer(where, parts, calls)
        if role == "system":
            self._add_tools(where, entry)
        message = Message(role, parts, self._trained(where, role, entry, parts))
        return result_turn(message, where, entry, self._sample, ids) if role == "tool" else Turn(
            message, where
        ), False

    def _answer(
        self, where: str, parts: tuple[Part, ...], calls: tuple[ToolCallPart, ...]
    ) -> tuple[Part, ...]:
        """The parts of an answer with its calls, which are in its content (Anthropic's form) or in `calls`."""
        inside = [index for index, part in enumerate(parts) if isinstance(part, ToolCallPart)]
        if inside and calls:
            raise self._sample.error("bad tool call", f"{where}: calls in the content and in tool_calls")
        if inside and inside != [*range(inside[0], len(parts))]:
            raise self._sample.bad(f"{where}: a part follows a call: calls must be the last parts")
        if inside or calls:
            return (*(part for part in parts if part != TextPart("")), *calls)
        if not any(isinstance(part, TextPart) and part.text for part in parts):
            raise self._sample.bad(f"{where}: the assistant's answer is empty")
        return parts

    def _add_tools(self, where: str, entry: dict[str, Any]) -> None:
        tools = record_tools(where, entry, self._sample)
        if tools and self.tools and tools != self.tools:
            raise self._sample.error(
                "bad tools", f"{where} has different tools from the record: keep one of them"
            )
        self.tools = tools or self.tools

    def _role(self, where: str, entry: dict[str, Any]) -> Role:
        role = entry.get("role")
        if isinstance(role, str) and role in _ROLES:
            return _ROLES[role]
        found = f"no role, only {keys_of(entry)}" if role is None else f"unknown role {quoted(role)}"
        raise self._sample.error("unknown role", f"{where}: {found}; allowed are {_ALLOWED_ROLES}")

    def _content(self, where: str, role: Role, entry: dict[str, Any], calls: bool) -> Iterable[Part]:
        if not any(entry.get(key) for key in MESSAGE_MEDIA_KEYS):
            return self._parts(where, role, entry, self.marked, calls)
        if role not in ("user", "tool"):
            raise self._sample.bad(
                f"{where}: only a user's message or the result of a tool has images or videos, not one of the {role}"
            )
        # Ollama's form: the message lists its media, which replace its marks or come before its text.
        own = MarkedMedia(entry, self._sample, where=where)
        parts = tuple(self._parts(where, role, entry, own, calls))
        if not own.marks:
            parts = (*own.rest(), *parts)
        own.check()
        return parts

    def _parts(
        self, where: str, role: Role, entry: dict[str, Any], marked: MarkedMedia, calls: bool
    ) -> Iterable[Part]:
        content = entry.get("content")
        if content is None and role == "assistant":
            content = entry.get("refusal")  # OpenAI's key for a refusal
        if role == "tool" and isinstance(content, dict):
            content = json_text(where, content, "bad record", self._sample)
        if isinstance(content, str):
            # In a tool result, a mark is plain text unless the record lists media.
            marks = role == "user" or (role == "tool" and (marked.has("image") or marked.has("video")))
            return marked.split(content) if marks else (TextPart(content),)
        if isinstance(content, list):
            return [
                read
                for number, part in enumerate(content, 1)
                for read in read_part(f"{where}, part {number}", role, part, marked, self._sample, self.tools)
            ]
        if role == "assistant" and content is None and calls:
            return ()
        if "content" not in entry:
            raise self._sample.bad(f'{where} ({role}) has no "content", only {keys_of(entry)}')
        found = (
            f"{where} ({role}): content must be a string or a list of parts, not {describe_value(content)}"
        )
        raise self._sample.bad(found)

    def _reasoning(self, where: str, role: Role, entry: dict[str, Any]) -> tuple[ReasoningPart, ...]:
        reasoning = self._sample.reasoning(where, entry)
        if reasoning and role != "assistant":
            raise self._sample.bad(f"{where}: only an assistant message has reasoning, not one of the {role}")
        return (ReasoningPart(reasoning),) if reasoning else ()

    def _trained(self, where: str, role: Role, entry: dict[str, Any], parts: Sequence[Part]) -> bool:
        loss = self._sample.loss(where, entry)
        if loss and role != "assistant":
            raise self._sample.bad(f"{where}: only the assistant's messages carry loss, not the {role}'s")
        if role != "assistant" or loss is False:
            return False
        return any(getattr(part, "trained", True) for part in parts)


def _joined(message: Message, calls: Message) -> Message:
    """One turn of an answer and the calls after it; each part is trained as in its own message."""
    if message.trained == calls.trained:
        return replace(message, parts=message.parts + calls.parts)
    return Message("assistant", (*_switched(message), *_switched(calls)), trained=True)


def _switched(message: Message) -> Iterable[Part]:
    for part in message.parts:
        if isinstance(part, TextPart | ReasoningPart | ToolCallPart):
            yield replace(part, trained=part.trained and message.trained)


def _labelled(messages: list[Message], label: Any, sample: SampleContext) -> list[Message]:
    """ERNIEKit's loss switches: a list with 0 or 1 for each answer. Any other column is ignored."""
    if not isinstance(label, list):
        return messages
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if len(label) != len(answers) or any(value not in (0, 1) for value in label):
        raise sample.bad(
            f'"label" must be a list with 0 or 1 for each of the {len(answers)} assistant messages'
        )
    labelled = list(messages)
    for index, value in zip(answers, label, strict=True):
        labelled[index] = replace(messages[index], trained=messages[index].trained and bool(value))
    return labelled
