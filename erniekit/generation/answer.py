"""Parses answers into reasoning, text and tool calls, at once or token by token.

Newlines next to a tag belong to the tag. Misplaced tags are left out; everything else is kept as the model wrote it. If
the template has a form for thinking, a think block at the start of an answer is reasoning, as in training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from erniekit.data.chat.template import END_THINK, THINK, Template
from erniekit.generation.detokenizer import Detokenizer, partial_match
from erniekit.json_fields import STRICT_JSON

DeltaKind = Literal["reasoning", "text", "tool_call"]
# The error of a call without its end tag.
CUT_OFF = "cut off"

# At the end of an answer, so many characters of a tag are an incomplete tag; fewer may be text.
_MIN_PARTIAL_TAG = 3


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the model wrote it. raw: the text between its tags.

    error: why the call cannot be parsed, or None. With an error, arguments is None, and name is "" if it cannot be
    parsed either.
    """

    name: str
    arguments: dict[str, Any] | None
    raw: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer: text of one kind, or a complete call (then `text` is empty)."""

    kind: DeltaKind
    text: str = ""
    call: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The parts of an answer, without tags."""

    reasoning: str
    text: str
    tool_calls: tuple[ToolCall, ...]

    @classmethod
    def of(cls, deltas: Sequence[Delta]) -> Answer:
        """The answer made of these pieces."""
        return cls(
            reasoning="".join(delta.text for delta in deltas if delta.kind == "reasoning"),
            text="".join(delta.text for delta in deltas if delta.kind == "text"),
            tool_calls=tuple(delta.call for delta in deltas if delta.call is not None),
        )


def parse_answer(text: str, template: Template) -> Answer:
    """Parses the text generated after a prompt of `Encoder.encode_prompt`. Never raises.

    Reasoning without its end tag extends to the end; a call without it has the error "cut off".
    """
    stream = AnswerParser(template)
    return Answer.of([*stream.feed(text), *stream.finish()])


class AnswerParser:
    """Parses an answer piece by piece. Joined, the deltas are the answer that `parse_answer` gives.

    No delta contains a part of a tag. The template's terminator ends the answer: the text after it is ignored.
    """

    def __init__(self, template: Template) -> None:
        call, end_of_call = (mark.strip("\n") for mark in template.tool_call)
        # Without a form for thinking, think tags are text, as in training.
        thinking = () if template.thinking == "none" else (THINK, END_THINK)
        self._terminator = template.terminator
        self._call = call
        self._marks: dict[DeltaKind, tuple[str, ...]] = {
            "reasoning": thinking,
            "text": (call, end_of_call, *(mark.strip("\n") for mark in template.answer if mark), *thinking),
            "tool_call": (end_of_call,),
        }
        self._kind: DeltaKind = "reasoning" if template.thinking == "on" else "text"
        # Input without a delta so far: white space that may belong to a tag, then the rest.
        self._space = self._rest = ""
        # Whether only white space has come since a tag; whether text or a call has come.
        self._after_tag = template.thinking == "on"
        self._begun = self._ended = False
        self._kinds: set[DeltaKind] = set()

    def feed(self, text: str) -> list[Delta]:
        """The deltas that are certain after this text."""
        if self._ended:
            return []
        before, terminator, _ = (self._rest + text).partition(self._terminator)
        self._rest = before
        return self._end(cut_off=False) if terminator else self._take()

    def finish(self) -> list[Delta]:
        """The last deltas, at the end of the answer."""
        return [] if self._ended else self._end(cut_off=True)

    def _take(self, final: bool = False) -> list[Delta]:
        """The deltas that are certain; keeps the possible start of a tag, and an incomplete call."""
        deltas: list[Delta] = []
        while (found := self._next_mark(final)) is not None:
            place, mark = found
            before, self._rest = self._rest[:place], self._rest[place + len(mark) :]
            deltas += [_parse_call(before)] if self._kind == "tool_call" else self._text(before)
            self._kind = self._after(mark)
            self._space, self._after_tag = "", True
        if self._kind != "tool_call":
            marks = (*self._marks[self._kind], self._terminator)
            certain = len(self._rest) - max(partial_match(self._rest, mark) for mark in marks)
            deltas += self._text(self._rest[:certain])
            self._rest = self._rest[certain:]
        return deltas

    def _after(self, mark: str) -> DeltaKind:
        """The kind of the text after a tag."""
        if mark == self._call:
            self._begun = True
            return "tool_call"
        # The prompt may have opened the block already; in the middle of an answer the tag is misplaced.
        return "reasoning" if mark == THINK and not self._begun else "text"

    def _end(self, cut_off: bool) -> list[Delta]:
        """The last deltas. cut_off: the answer may end in the middle of a tag."""
        self._ended = True
        deltas = self._take(final=True)
        if self._kind == "tool_call":
            (mark,) = self._marks["tool_call"]
            raw = self._rest[: len(self._rest) - partial_match(self._rest, mark)].strip()
            return [*deltas, Delta("tool_call", call=ToolCall("", None, raw, CUT_OFF))]
        if cut_off and len(self._rest) >= _MIN_PARTIAL_TAG:
            return deltas
        deltas += self._text(self._rest)
        if self._kind == "text" and self._space and not self._after_tag:
            deltas.append(Delta("text", self._space))
        return deltas

    def _next_mark(self, final: bool) -> tuple[int, str] | None:
        """Position and text of the first tag that ends the current kind."""
        marks = self._marks[self._kind]
        found = [(place, mark) for mark in marks if (place := self._rest.find(mark)) >= 0]
        if not found:
            return None
        first = place, mark = min(found)
        if self._kind == "tool_call":
            # The arguments of a call may contain its tag in a string.
            while _ends_in_string(self._rest[:place]):
                place = self._rest.find(mark, place + 1)
                if place < 0:
                    return first if final else None
        return place, mark

    def _text(self, piece: str) -> list[Delta]:
        """A piece of reasoning or text, without trailing white space that may belong to a tag."""
        piece = self._space + piece
        self._space = ""
        if self._after_tag:
            if not piece.strip():
                self._space = piece
                return []
            # Texts that a tag separates must not run together.
            piece = ("\n" if self._kind in self._kinds else "") + piece.lstrip("\n")
            self._after_tag = False
        text = piece.rstrip("\n")
        self._space = piece[len(text) :]
        if not text:
            return []
        self._kinds.add(self._kind)
        self._begun |= self._kind == "text"
        return [Delta(self._kind, text)]


class AnswerDecoder:
    """Decodes and parses one answer, token by token.

    stop: the texts that end it, the same as in generation. `tokens`: the number of tokens so far, with the end token;
    `finish`: "stop" once the model or a stop text has ended the answer, "length" until then.
    """

    def __init__(self, detokenizer: Detokenizer, template: Template, stop: Sequence[str]) -> None:
        self.tokens = 0
        self.finish: Literal["stop", "length"] = "length"
        self._detokenizer = detokenizer
        self._pieces = detokenizer.stream(stop)
        self._parser = AnswerParser(template)

    def feed(self, token: int) -> list[Delta]:
        """The deltas that are certain after this token."""
        self.tokens += 1
        deltas = self._parser.feed(self._pieces.feed(token))
        if self._pieces.stopped or self._detokenizer.ended([token]):
            self.finish = "stop"
        return deltas

    def end(self) -> list[Delta]:
        """The last deltas, after the last token."""
        return [*self._parser.feed(self._pieces.finish()), *self._parser.finish()]


def _parse_call(raw: str) -> Delta:
    """A complete call, from the text between its tags."""
    raw = raw.strip()
    name = ""
    try:
        call = STRICT_JSON.decode(raw)
        if not isinstance(call, dict):
            raise ValueError('it is not an object with "name" and "arguments"')
        if not isinstance(call.get("name"), str) or not call["name"]:
            raise ValueError('it has no "name"')
        json.dumps(call, ensure_ascii=False).encode()  # half a surrogate pair has no UTF-8
        name, arguments = call["name"], call.get("arguments")
        if isinstance(arguments, str):
            arguments = STRICT_JSON.decode(arguments) if arguments.strip() else None
        if arguments is None:  # the same as {}, as in data
            arguments = {}
        if not isinstance(arguments, dict):
            raise ValueError('its "arguments" are not an object')
    except (ValueError, RecursionError) as error:
        return Delta("tool_call", call=ToolCall(name, None, raw, _reason(error)))
    return Delta("tool_call", call=ToolCall(name, arguments, raw, None))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} (character {error.pos + 1})"
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _ends_in_string(json_text: str) -> bool:
    """Whether JSON breaks off inside a string. A string has no newline, so the newline before a tag ends it."""
    try:
        STRICT_JSON.decode(json_text)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return False
