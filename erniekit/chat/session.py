"""A chat with a model: its messages, the next answer as a stream, and the chat as a training sample."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from erniekit.data.chat.conversation import (
    Conversation,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    SampleError,
    TextPart,
    ToolCallPart,
    VideoPart,
)
from erniekit.data.chat.template import Template
from erniekit.data.convert import to_record
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.data.formats import parse_record
from erniekit.errors import DataError
from erniekit.generation.answer import CUT_OFF, Answer, AnswerDecoder, Delta
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.generate import Generator
from erniekit.generation.sampling import Sampling, chat_sampling
from erniekit.interrupt import InterruptGuard
from erniekit.models.ernie import ErnieModel

OnDelta = Callable[[Delta], None]
_QUESTION = Message("user", (TextPart("x"),), False)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with its token counts and times.

    first_seconds: time to the first token; seconds: time from the first token to the last. problem: why question and
    answer are dropped from the chat, or None.
    """

    answer: Answer
    finish: Literal["stop", "length", "interrupted"]
    prompt_tokens: int
    tokens: int
    first_seconds: float
    seconds: float
    problem: str | None


class Chat:
    """A chat so far. Input that does not fit raises SampleError and leaves the chat unchanged.

    `messages` does not include the system message; `attached` belongs to the next question.
    """

    def __init__(
        self,
        model: ErnieModel,
        encoder: Encoder,
        detokenizer: Detokenizer,
        sampling: Sampling,
        tools: tuple[dict[str, Any], ...] = (),
    ) -> None:
        self.messages: list[Message] = []
        self.attached: list[Part] = []
        self.system = ""
        self._tools = tools
        self._encoder = encoder
        self._detokenizer = detokenizer
        self._generator = Generator(
            model, detokenizer.eos_token_ids, encoder.media_spec, detokenizer=detokenizer
        )
        self._sampling = chat_sampling(sampling, encoder.template)
        self._answers = 0
        self._check()

    def set_system(self, text: str) -> None:
        """Changes the system message of the whole chat; "" removes it."""
        before, self.system = self.system, text
        try:
            self._check()
        except SampleError:
            self.system = before
            raise

    def attach(self, kind: Literal["image", "video"], file: str) -> None:
        """Attaches an image or a video to the next question."""
        path = os.path.abspath(os.path.expanduser(file))
        part = ImagePart(path) if kind == "image" else VideoPart(path)
        self._check(Message("user", (part,), False))
        self.attached.append(part)

    def ask(self, text: str, show: OnDelta) -> Reply:
        """Answers a question; `show` gets the answer piece by piece.

        Ctrl-C ends the answer after the next token; a second one raises KeyboardInterrupt, and the turn is dropped.
        """
        attached, self.attached = self.attached, []
        question = Message("user", (*attached, TextPart(text)), False)
        # A chat cannot continue after calls without results: these get empty ones.
        return self._reply([*_results([""] * self._open_calls), question], show)

    def give_results(self, results: Sequence[str], show: OnDelta) -> Reply:
        """Answers the results of tools: one for each call of the last answer, in order."""
        if len(results) != self._open_calls:
            raise ValueError(f"{len(results)} results for {self._open_calls} calls")
        return self._reply(_results(results), show)

    @property
    def _open_calls(self) -> int:
        """The number of tool calls in the last message."""
        return sum(isinstance(part, ToolCallPart) for part in self.messages[-1].parts) if self.messages else 0

    def reset(self) -> None:
        """Clears the chat, but for the system message."""
        self.messages, self.attached = [], []

    def save(self, file: Path) -> None:
        """Appends the chat to a JSON lines file in the format "messages".

        Incomplete answers, and answers with invalid tool calls, are not trained. Raises DataError.
        """
        if not self.messages:
            raise DataError("the chat is empty: there is nothing to save")
        record = to_record(self._conversation())
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"{file}: cannot be written: {error.strerror or error}") from error

    def _conversation(self, *added: Message) -> Conversation:
        system = (Message("system", (TextPart(self.system),), False),) if self.system else ()
        return Conversation((*system, *self.messages, *added), "this chat", self._tools)

    def _check(self, *added: Message) -> None:
        """Raises SampleError if no question can follow."""
        self._encoder.encode_prompt(self._conversation(*added, _QUESTION))

    def _reply(self, added: list[Message], show: OnDelta) -> Reply:
        with InterruptGuard(signals=[signal.SIGINT]) as guard:
            reply = self._generate(self._encoder.encode_prompt(self._conversation(*added)), show, guard)
        message = answer_message(reply.answer, self._encoder.template, whole=reply.finish == "stop")
        if message is None:
            return replace(reply, problem="the model gave no answer")
        try:
            # Models can generate text that no chat may contain.
            self._check(*added, message)
        except SampleError as error:
            return replace(reply, problem=error.detail)
        self.messages += [*added, message]
        return reply

    def _generate(self, prompt: Document, show: OnDelta, guard: InterruptGuard) -> Reply:
        deltas: list[Delta] = []

        def show_all(new: Iterable[Delta]) -> None:
            for delta in new:
                deltas.append(delta)
                show(delta)

        # Each answer of a chat has another seed; the same first seed gives the same chat.
        sampling = replace(self._sampling, seed=self._sampling.seed + self._answers)
        self._answers += 1
        decoder = AnswerDecoder(self._detokenizer, self._encoder.template, sampling.stop)
        first = last = began = time.perf_counter()
        ids = self._generator.stream(prompt, sampling)
        while guard.requested is None and (token := next(ids, None)) is not None:
            last = time.perf_counter()
            first = first if decoder.tokens else last
            show_all(decoder.feed(token))
        show_all(decoder.end())
        finish: Literal["stop", "length", "interrupted"] = decoder.finish
        if guard.requested is not None and finish != "stop":
            finish = "interrupted"
        return Reply(
            Answer.of(deltas), finish, len(prompt), decoder.tokens, first - began, last - first, None
        )


def _results(texts: Sequence[str]) -> list[Message]:
    return [Message("tool", (TextPart(text),), False) for text in texts]


def answer_message(answer: Answer, template: Template, *, whole: bool) -> Message | None:
    """An answer as a message of the chat; None for an answer without text and calls.

    A call that cannot be parsed becomes text, as the model wrote it; one that was cut off is left out. whole: whether
    the answer is complete. Incomplete answers, and answers with such calls, are not trained.
    """
    broken = [call for call in answer.tool_calls if call.arguments is None]
    before, after = template.tool_call
    raw = [before + call.raw + after for call in broken if call.error != CUT_OFF]
    text = "".join([answer.text, *raw])
    calls = [
        ToolCallPart(call.name, json.dumps(call.arguments, ensure_ascii=False))
        for call in answer.tool_calls
        if call.arguments is not None
    ]
    if not text and not calls:
        return None
    parts: list[Part] = [ReasoningPart(answer.reasoning)] if answer.reasoning else []
    if text:
        parts.append(TextPart(text))
    return Message("assistant", (*parts, *calls), trained=whole and not broken)


def load_tools(file: Path) -> tuple[dict[str, Any], ...]:
    """The tools of a JSON file: a list of OpenAI's tool objects, or of their "function" objects. Raises DataError."""
    try:
        tools = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON: {error}") from error
    record = {"messages": [{"role": "user", "content": "x"}], "tools": tools}
    return parse_record(record, format="messages", base_dir=file.parent, sample_id=str(file)).tools
