"""Renders a conversation as spans of text, images and videos, each trained or not.

The joined spans are equal to the text of the tokenizer's own apply_chat_template. Sources: the chat templates of the
released checkpoints, and transformers' models.ernie4_5_vl_moe.convert_ernie4_5_vl_moe_to_hf. The templates are in
`erniekit.data.chat.families`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from erniekit.data.chat.conversation import (
    Conversation,
    ImagePart,
    Message,
    ReasoningPart,
    SampleError,
    TextPart,
    ToolCallPart,
    VideoPart,
)
from erniekit.data.chat.loss_policy import DEFAULT_POLICY, LossPolicy, current_turn

THINK, END_THINK = "<think>", "</think>"

# The source of a text; "template": written by the template itself.
SpanKind = Literal[
    "template", "system", "tools", "user", "tool_result", "reasoning", "tool_call", "answer", "text"
]
Around = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Text that is either trained or context.

    generated: the model generates it, as opposed to text of the prompt. The generated spans of one answer are
    adjacent, and end with the terminator.
    """

    text: str
    kind: SpanKind
    trained: bool = False
    generated: bool = False


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """An image or video: start marker, placeholders and end marker. Never trained."""

    part: ImagePart | VideoPart


Span = TextSpan | MediaSpan


@dataclass(frozen=True, slots=True)
class Template:
    """The chat format of one model family. A pair of texts is the text before and the text after the content.

    begin: the beginning of a chat and of plain text; tools_first: the list of tools comes before the system message
    instead of after the settings; default_system: replaces a missing system message; settings, opening_end: always
    written before the first turn; between_results: separates consecutive tool results, which share a user turn;
    before_generation: written before answer_start in a generation prompt, but not in the history; generation_start:
    written after answer_start in a generation prompt; end_of_reasoning: generated after the reasoning; after_answer:
    written after the terminator if the chat continues.

    thinking: "none" (not supported: tags are plain text), "off" (answers have no reasoning, which an empty block in
    generation_start shows) or "on". takes_media: whether it supports images and videos. tokens: special tokens of the
    format, which data must not contain.
    """

    name: str
    thinking: Literal["none", "off", "on"]
    begin: str
    system: Around
    tools: Around
    tools_first: bool
    user: Around
    tool_result: Around
    answer_start: str
    generation_start: str
    terminator: str
    tokens: tuple[str, ...]
    takes_media: bool = True
    default_system: str = ""
    settings: str = ""
    opening_end: str = ""
    between_results: str = ""
    before_generation: str = ""
    end_of_reasoning: str = f"\n{END_THINK}\n\n"
    answer: Around = ("", "")
    tool_call: Around = ("<tool_call>\n", "\n</tool_call>\n")
    after_answer: str = ""

    def render(self, conversation: Conversation, policy: LossPolicy = DEFAULT_POLICY) -> list[Span]:
        """A chat for training, or plain text. `policy` decides what is trained; the rest is context.

        With thinking "on", the answers of the current turn (after the last user message) follow the generation prompt,
        as at inference, with their reasoning, or with an empty block, which is never trained. Earlier answers have the
        form of the history: no block, no reasoning. With "off", an empty block precedes the last answer. Raises
        SampleError for a chat that the template cannot render.
        """
        messages = conversation.messages
        if messages[0].role == "text":
            text = _text(messages[0])
            if not text:
                raise SampleError(conversation.sample_id, "bad record", "the text is empty")
            return [TextSpan(self.begin, "template"), TextSpan(text, "text", messages[0].trained, True)]
        require_answer(conversation)
        return self._chat(conversation, policy, policy.trained(messages))

    def render_prompt(self, conversation: Conversation, policy: LossPolicy = DEFAULT_POLICY) -> list[Span]:
        """A chat up to the generation prompt for the assistant's next answer; nothing is trained.

        Raises SampleError for a chat that ends with an answer or text.
        """
        last = conversation.messages[-1].role
        if last in ("assistant", "text"):
            found = "an assistant message" if last == "assistant" else "plain text"
            raise SampleError(conversation.sample_id, "bad record", f"a prompt must not end with {found}")
        spans = self._chat(conversation, policy, (False,) * len(conversation.messages))
        spans.append(TextSpan(self.before_generation + self.answer_start + self.generation_start, "template"))
        return spans

    def _chat(self, conversation: Conversation, policy: LossPolicy, trained: tuple[bool, ...]) -> list[Span]:
        messages, sample_id = conversation.messages, conversation.sample_id
        spans = self._opening(conversation)
        media: Counter[str] = Counter()
        current = current_turn(messages)
        for index, message in enumerate(messages):
            following = messages[index + 1].role if index + 1 < len(messages) else None
            if message.role == "assistant":
                place = _Place(index >= current, self._prompted(index, messages, current), trained[index])
                spans += self._answer(message, place, policy, sample_id)
                if following is not None:
                    spans.append(TextSpan(self.after_answer, "template"))
            elif message.role == "tool":
                before = self.between_results if messages[index - 1].role == "tool" else self.user[0]
                after = "" if following == "tool" else self.user[1]
                spans.append(TextSpan(before + self.tool_result[0], "template"))
                spans += self._content(message, "tool_result", media, sample_id)
                spans.append(TextSpan(self.tool_result[1] + after, "template"))
            elif message.role == "user":
                spans.append(TextSpan(self.user[0], "template"))
                spans += self._content(message, "user", media, sample_id)
                spans.append(TextSpan(self.user[1], "template"))
            elif message.role == "text" or index:
                detail = f"message {index + 1}: a {message.role} message can only be the first of a sample"
                raise SampleError(sample_id, "bad record", detail)
        return spans

    def stands_as_prompted(self, messages: Sequence[Message]) -> tuple[bool, ...]:
        """Whether each message is an answer in the form of inference, after a generation prompt.

        Other answers have the form of the history. In templates where both forms are equal, this is true for all.
        """
        same = not (self.before_generation or self.generation_start)
        current = current_turn(messages)
        return tuple(
            message.role == "assistant" and (same or self._prompted(index, messages, current))
            for index, message in enumerate(messages)
        )

    def _prompted(self, index: int, messages: Sequence[Message], current: int) -> bool:
        return index >= current if self.thinking == "on" else index == len(messages) - 1

    def _opening(self, conversation: Conversation) -> list[Span]:
        first = conversation.messages[0]
        tools: list[Span] = []
        if conversation.tools:
            tools = _wrapped(json.dumps(conversation.tools, ensure_ascii=False), "tools", self.tools)
        system: list[Span] = [TextSpan(self.default_system, "system")]
        if first.role == "system":
            system = _wrapped(_text(first), "system", self.system)
        begin, settings = TextSpan(self.begin, "template"), TextSpan(self.settings, "template")
        if self.tools_first:
            return [begin, *tools, *system, settings, TextSpan(self.opening_end, "template")]
        return [begin, *system, settings, *tools, TextSpan(self.opening_end, "template")]

    def _content(self, message: Message, kind: SpanKind, media: Counter[str], sample_id: str) -> list[Span]:
        spans: list[Span] = []
        for part in message.parts:
            if isinstance(part, TextPart):
                spans.append(TextSpan(part.text, kind))
            elif isinstance(part, ImagePart | VideoPart):
                name = "Picture" if isinstance(part, ImagePart) else "Video"
                if not self.takes_media:
                    detail = (
                        f"template {self.name} does not support images and videos, but a {message.role} "
                        f"message has {'an image' if isinstance(part, ImagePart) else 'a video'}"
                    )
                    raise SampleError(sample_id, "not supported", detail)
                media[name] += 1
                spans += [TextSpan(f"{name} {media[name]}:", "template"), MediaSpan(part)]
        return spans

    def _answer(self, message: Message, place: _Place, policy: LossPolicy, sample_id: str) -> list[Span]:
        reasoning, masked, texts = self._divided(message, policy, sample_id)
        if policy.reasoning == "drop" or not place.current:
            reasoning = ""
        if reasoning and self.thinking != "on":
            detail = (
                f"an answer of the last turn has reasoning, which template {self.name} does not support: "
                "leave it out with data.reasoning=drop, or use a thinking model and its template "
                "(ernie_thinking, ernie_vl_thinking)"
            )
            raise SampleError(sample_id, "reasoning not supported", detail)
        start = self.answer_start
        if place.prompted:
            start = self.before_generation + start + self.generation_start
            if self.thinking == "on" and not reasoning:
                start += self.end_of_reasoning
        trained = place.trained
        spans: list[Span] = [TextSpan(start, "template")]
        if reasoning:
            is_trained = trained and policy.reasoning == "train" and not masked
            spans.append(TextSpan(reasoning, "reasoning", is_trained, generated=True))
            spans.append(TextSpan(self.end_of_reasoning, "template", is_trained, generated=True))
        if texts:
            before, after = self.answer
            spans += [TextSpan(before, "template", trained, generated=True)] if before else []
            spans += [
                TextSpan(part.text, "answer", trained and part.trained, generated=True) for part in texts
            ]
            spans += [TextSpan(after, "template", trained, generated=True)] if after else []
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                name = json.dumps(part.name, ensure_ascii=False)
                call = f'{{"name": {name}, "arguments": {part.arguments}}}'
                spans += _wrapped(call, "tool_call", self.tool_call, trained and part.trained, generated=True)
        spans.append(TextSpan(self.terminator, "template", trained, generated=True))
        return spans

    def split_answer(self, message: Message, policy: LossPolicy, sample_id: str) -> tuple[str, str]:
        """(reasoning, answer) of an assistant message. A text that begins with a think block is split.

        A blank block is no reasoning. If the template does not support thinking, a block in the text is only split off
        when the policy masks or drops reasoning.
        """
        reasoning, _, texts = self._divided(message, policy, sample_id)
        return reasoning, "".join(part.text for part in texts)

    def _divided(
        self, message: Message, policy: LossPolicy, sample_id: str
    ) -> tuple[str, bool, list[TextPart]]:
        """(reasoning, whether the data switches off its loss, parts of the answer); see `split_answer`."""
        thoughts = [part for part in message.parts if isinstance(part, ReasoningPart)]
        reasoning = "".join(part.text for part in thoughts)
        masked = not all(part.trained for part in thoughts)
        texts = [part for part in message.parts if isinstance(part, TextPart) and part.text]
        answer = "".join(part.text for part in texts)
        plain = self.thinking == "none" and policy.reasoning == "train"
        if not plain and answer.lstrip("\n").startswith(THINK):
            inner, end, rest = answer.lstrip("\n").removeprefix(THINK).partition(END_THINK)
            if not end:
                detail = f"an answer begins with {THINK} but has no {END_THINK}"
                raise SampleError(sample_id, "bad record", detail)
            if reasoning.strip() and inner.strip():
                detail = (
                    f"an answer has reasoning twice: in reasoning_content and between {THINK} and {END_THINK}"
                )
                raise SampleError(sample_id, "bad record", detail)
            if not reasoning.strip():
                reasoning, masked = inner, not texts[0].trained
            texts = _last_characters(texts, len(rest.lstrip("\n")))
        return reasoning.strip("\n") if reasoning.strip() else "", masked, texts


@dataclass(frozen=True, slots=True)
class _Place:
    """The form of an answer. current: it is in the current turn; prompted: it follows a generation prompt; trained: it
    carries loss."""

    current: bool
    prompted: bool
    trained: bool


def require_answer(conversation: Conversation) -> None:
    """Raise SampleError if a chat does not end with an assistant message."""
    last = conversation.messages[-1].role
    if last != "assistant":
        detail = f"the chat ends with a {last} message: the last must be the assistant's answer"
        raise SampleError(conversation.sample_id, "no answer at the end", detail)


def _text(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def _last_characters(parts: Sequence[TextPart], count: int) -> list[TextPart]:
    """The last `count` characters of the joined texts, still in parts."""
    kept: list[TextPart] = []
    for part in reversed(parts):
        if count:
            kept.append(replace(part, text=part.text[-count:]))
            count -= len(kept[-1].text)
    return kept[::-1]


def _wrapped(
    text: str, kind: SpanKind, around: Around, trained: bool = False, generated: bool = False
) -> list[Span]:
    before, after = around
    spans: list[Span] = [TextSpan(text, kind, trained, generated)]
    if before:
        spans.insert(0, TextSpan(before, "template", trained, generated))
    if after:
        spans.append(TextSpan(after, "template", trained, generated))
    return spans
