"""Chat templates of ERNIE 4.5: a conversation as spans of text and pictures, each trained or not.

A rendered conversation, its spans joined, is the text that the tokenizer's own apply_chat_template gives for
it. Sources: the chat templates of the released checkpoints; transformers'
models.ernie4_5_vl_moe.convert_ernie4_5_vl_moe_to_hf.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from erniekit.data.conversation import Conversation, ImagePart, Message, ReasoningPart, SampleError, TextPart
from erniekit.errors import DataError

BEGIN = "<|begin_of_sentence|>"
TERMINATOR = "<|end_of_sentence|>"
_THINK, _END_THINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Text that is all trained or all context."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """A picture: its start marker, placeholders and end marker come here. Never trained."""

    source: str | bytes


Span = TextSpan | MediaSpan


@dataclass(frozen=True, slots=True)
class Template:
    """How one family of checkpoints writes a chat.

    user_end: what ends a user's turn; answer_start: what begins the assistant's; generation_start: what the
    prompt puts after answer_start when an answer is to be generated; thinking: "none" (no form for it: tags
    in texts are plain text), "off" (answers without reasoning, marked by an empty block) or "on";
    default_system: what the tokenizer's own template puts before the first turn of a chat that has no system
    message, with its line end.
    """

    name: str
    user_end: str
    answer_start: str
    generation_start: str
    thinking: Literal["none", "off", "on"]
    default_system: str = ""

    def render(self, conversation: Conversation) -> Iterator[Span]:
        """A whole chat for training: answers and their terminators are trained, the rest is context.

        The last answer stands after the generation prompt, with its reasoning, as at inference. Earlier
        answers stand as the history that later turns see: no block, no reasoning; they are trained as well.
        Raises SampleError when the last message is not the assistant's, or has reasoning for which this
        template has no place.
        """
        if conversation.messages[-1].role != "assistant":
            last = conversation.messages[-1].role
            detail = f"the chat ends with a {last} message: the last must be the assistant's answer"
            raise SampleError(conversation.sample_id, "no answer at the end", detail)
        yield from self._context(conversation, conversation.messages[:-1], train=True)
        yield from self._last_answer(conversation.messages[-1], conversation.sample_id)

    def render_prompt(self, conversation: Conversation) -> Iterator[Span]:
        """A chat up to where the assistant's next answer is to be generated; nothing is trained."""
        if conversation.messages[-1].role == "assistant":
            raise SampleError(
                conversation.sample_id, "bad record", "a prompt must not end with an assistant message"
            )
        yield from self._context(conversation, conversation.messages, train=False)
        yield TextSpan(self.answer_start + self.generation_start, False)

    def _context(
        self, conversation: Conversation, messages: tuple[Message, ...], train: bool
    ) -> Iterator[Span]:
        yield TextSpan(BEGIN, False)
        if conversation.messages[0].role != "system":
            yield TextSpan(self.default_system, False)
        pictures = 0
        for message in messages:
            if message.role == "assistant":
                _, answer = self._split(message, conversation.sample_id)
                yield TextSpan(self.answer_start, False)
                yield TextSpan(answer + TERMINATOR, message.trained and train)
                continue
            yield TextSpan("User: " if message.role == "user" else "", False)
            for part in message.parts:
                if isinstance(part, ImagePart):
                    pictures += 1
                    yield TextSpan(f"Picture {pictures}:", False)
                    yield MediaSpan(part.source)
                else:
                    yield TextSpan(part.text, False)
            yield TextSpan(self.user_end if message.role == "user" else "\n", False)

    def _last_answer(self, message: Message, sample_id: str) -> Iterator[Span]:
        reasoning, answer = self._split(message, sample_id)
        if self.thinking != "on":
            if reasoning:
                detail = (
                    f"the last answer has reasoning, for which template {self.name} has no place: "
                    "use data.template=ernie_vl_thinking, or leave the reasoning out"
                )
                raise SampleError(sample_id, "reasoning without a place", detail)
            start = self.generation_start
        elif reasoning:
            start = self.generation_start
            answer = f"{reasoning}\n{_END_THINK}\n\n{answer}"
        else:
            start = f"{self.generation_start}\n{_END_THINK}\n\n"
        yield TextSpan(self.answer_start + start, False)
        yield TextSpan(answer + TERMINATOR, message.trained)

    def _split(self, message: Message, sample_id: str) -> tuple[str, str]:
        """(reasoning, answer) of an assistant message; a text that begins with a think block has both."""
        reasoning = "".join(part.text for part in message.parts if isinstance(part, ReasoningPart))
        reasoning = reasoning.strip("\n")
        answer = "".join(part.text for part in message.parts if isinstance(part, TextPart))
        if self.thinking == "none" or not answer.lstrip("\n").startswith(_THINK):
            return reasoning, answer
        inner, end, rest = answer.lstrip("\n").removeprefix(_THINK).partition(_END_THINK)
        if not end:
            raise SampleError(
                sample_id, "bad record", f"an answer begins with {_THINK} but has no {_END_THINK}"
            )
        if reasoning and inner.strip("\n"):
            detail = (
                f"an answer has reasoning twice: in reasoning_content and between {_THINK} and {_END_THINK}"
            )
            raise SampleError(sample_id, "bad record", detail)
        return reasoning or inner.strip("\n"), rest.lstrip("\n")


TEMPLATES = {
    template.name: template
    for template in (
        Template("ernie", "\n", "Assistant: ", "", "none"),
        Template("ernie_vl", "", "\nAssistant: ", f"{_THINK}\n\n{_END_THINK}\n\n", "off"),
        Template("ernie_vl_thinking", "", "\nAssistant: ", f"\n{_THINK}\n", "on"),
    )
}
_CHOICES = f"set data.template to one of {', '.join(TEMPLATES)}"


class ChatTemplateTokenizer(Protocol):
    """What resolve_template needs of a transformers tokenizer."""

    chat_template: str | None

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        """The chat as text."""
        ...


def resolve_template(name: str, tokenizer: ChatTemplateTokenizer, is_vl: bool) -> Template:
    """The template of that name; for "auto", the one with which the tokenizer's own chat template agrees.

    "auto" renders one question with apply_chat_template and compares the whole text; what the tokenizer's
    template puts before the question (a default system prompt) is kept. A tokenizer without a chat template:
    ernie_vl when is_vl, else ernie. Raises DataError for a chat template that is none of these.
    """
    if name != "auto":
        if name not in TEMPLATES:
            raise DataError(f"unknown data.template {name!r}; there are {', '.join(TEMPLATES)} and auto")
        return TEMPLATES[name]
    if not tokenizer.chat_template:
        return TEMPLATES["ernie_vl" if is_vl else "ernie"]
    question = "x"
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a Jinja program of the checkpoint runs here: it can fail in any way
        raise DataError(
            f"the tokenizer's chat template fails on a plain question: {error}; {_CHOICES}"
        ) from error
    # ernie_vl and ernie_vl_thinking end with more than ernie does, so an order of trial is not needed.
    for template in TEMPLATES.values():
        ending = f"User: {question}{template.user_end}{template.answer_start}{template.generation_start}"
        if rendered.startswith(BEGIN) and rendered.endswith(ending):
            return dataclasses.replace(template, default_system=rendered[len(BEGIN) : -len(ending)])
    raise DataError(
        f"the tokenizer's chat template is none that erniekit knows (it renders {rendered!r}); {_CHOICES}"
    )
