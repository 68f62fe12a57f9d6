"""Chat templates of ERNIE 4.5: a conversation as spans of text, images and videos, each trained or not.

A rendered conversation, its spans joined, is the text that the tokenizer's own apply_chat_template gives for
it. Sources: the chat templates of the released checkpoints; transformers'
models.ernie4_5_vl_moe.convert_ernie4_5_vl_moe_to_hf. The templates themselves: template_families.py.
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
    """Text that is all trained or all context.

    generated: it is what the model itself writes when it answers, as opposed to its prompt. The generated
    spans of one answer stand side by side, the terminator last.
    """

    text: str
    kind: SpanKind
    trained: bool = False
    generated: bool = False


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """An image or video: its start marker, placeholders and end marker come here. Never trained."""

    part: ImagePart | VideoPart


Span = TextSpan | MediaSpan


@dataclass(frozen=True, slots=True)
class Template:
    """How one family of checkpoints writes a chat. A pair of texts is what stands before and after another.

    begin: the first text of a chat and of plain text; tools_first: the list of tools comes before the system
    message, not after the settings; default_system: what stands in the place of a system message where there
    is none; settings, opening_end: what a chat has before its first turn, always; between_results: what parts
    the results of tools that follow each other, all in one user turn; before_generation: what a prompt has
    before answer_start, and answers in history have not; generation_start: what it puts after answer_start;
    end_of_reasoning: what the model writes after its reasoning; after_answer: what follows terminator where
    the chat goes on.

    thinking: "none" (no form for it: tags in texts are plain text), "off" (answers without reasoning, marked
    by an empty block in generation_start) or "on". takes_media: whether it has a form for images and videos.
    tokens: its marks that must be single tokens, which no text may contain.
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
        """A whole chat for training, or plain text. What is trained, `policy` says; the rest is context.

        With thinking "on", the answers of the current turn (after the last user message) stand after the
        generation prompt, as at inference, each with its reasoning, or with an empty block that is never
        trained. Earlier answers stand as the history that later turns see: no block, no reasoning. With "off"
        the empty block stands before the last answer. Raises SampleError for what the template cannot write.
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
        """A chat up to where the assistant's next answer is to be generated; nothing is trained."""
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
        """For each message whether it is an answer that stands after what a prompt ends with, as at inference.

        The others stand as the history that later turns see; where that is the same, all stand as prompted.
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
                        f"template {self.name} has no form for images and videos, and a {message.role} "
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
                f"an answer of the last turn has reasoning, for which template {self.name} has no place: "
                "leave it out with data.reasoning=drop, or use a thinking model and its template "
                "(ernie_thinking, ernie_vl_thinking)"
            )
            raise SampleError(sample_id, "reasoning without a place", detail)
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
        """(reasoning, answer) of an assistant message; a text that begins with a think block has both.

        A block without a word in it is no reasoning. Where the template has no form for thinking, a block in
        the text is reasoning only if the policy treats reasoning in its own way.
        """
        reasoning, _, texts = self._divided(message, policy, sample_id)
        return reasoning, "".join(part.text for part in texts)

    def _divided(
        self, message: Message, policy: LossPolicy, sample_id: str
    ) -> tuple[str, bool, list[TextPart]]:
        """(reasoning, whether the data takes its loss away, parts of the answer); see `split_answer`."""
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
    """Where an answer stands. current: in the current turn; prompted: as at inference; trained: its words are."""

    current: bool
    prompted: bool
    trained: bool


def require_answer(conversation: Conversation) -> None:
    """Raises SampleError when a chat does not end with an assistant message."""
    last = conversation.messages[-1].role
    if last != "assistant":
        detail = f"the chat ends with a {last} message: the last must be the assistant's answer"
        raise SampleError(conversation.sample_id, "no answer at the end", detail)


def _text(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def _last_characters(parts: Sequence[TextPart], count: int) -> list[TextPart]:
    """The texts without what stands before their last `count` characters."""
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
