"""What a model wrote, taken apart: its reasoning, its text, and the tools it calls.

Line ends beside a tag belong to the tag. All else is kept as the model wrote it, but for tags that stand where none
belongs: these are left out. Where the template has a form for thinking, a think block that begins an answer is
reasoning, as it is in training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Never

from erniekit.data.chat.template import END_THINK, THINK, Template
from erniekit.generation.detokenizer import partial_match

Kind = Literal["reasoning", "text", "tool_call"]
# The error of a call that does not end.
CUT_OFF = "cut off"

# So much of a tag at the very end of an answer is taken for a tag that was cut off; less may be text.
_CLEARLY_A_TAG = 3


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the model wrote it. raw: what stands between its tags.

    error: what is wrong with it, None for nothing. Where something is, arguments is None, and name is empty if
    none can be read.
    """

    name: str
    arguments: dict[str, Any] | None
    raw: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer: text of its kind, or a whole call (then `text` is empty)."""

    kind: Kind
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
        """The answer that came in these pieces."""
        return cls(
            reasoning="".join(delta.text for delta in deltas if delta.kind == "reasoning"),
            text="".join(delta.text for delta in deltas if delta.kind == "text"),
            tool_calls=tuple(delta.call for delta in deltas if delta.call is not None),
        )


def parse_answer(text: str, template: Template) -> Answer:
    """The parts of what a model generated after a prompt of `Encoder.encode_prompt`. Never raises.

    Reasoning that does not end is all reasoning, a call that does not end is one with the error "cut off".
    """
    stream = AnswerStream(template)
    return Answer.of([*stream.feed(text), *stream.finish()])


class AnswerStream:
    """Takes an answer apart while it comes in. The pieces joined are what `parse_answer` gives for the whole.

    Never shows a part of a tag. The template's terminator ends the answer: nothing after it is shown.
    """

    def __init__(self, template: Template) -> None:
        call, end_of_call = (mark.strip("\n") for mark in template.tool_call)
        # Without a form for thinking its tags are text, as they are in training.
        thinking = () if template.thinking == "none" else (THINK, END_THINK)
        self._terminator = template.terminator
        self._call = call
        self._marks: dict[Kind, tuple[str, ...]] = {
            "reasoning": thinking,
            "text": (call, end_of_call, *(mark.strip("\n") for mark in template.answer if mark), *thinking),
            "tool_call": (end_of_call,),
        }
        self._kind: Kind = "reasoning" if template.thinking == "on" else "text"
        # What has come in and is not told yet: first white space that may belong to a tag, then the rest.
        self._space = self._rest = ""
        # Whether a tag came last, but for white space; whether text or a call has come.
        self._after_tag = template.thinking == "on"
        self._begun = self._ended = False
        self._told: set[Kind] = set()

    def feed(self, text: str) -> list[Delta]:
        """What is certain after these further characters."""
        if self._ended:
            return []
        before, terminator, _ = (self._rest + text).partition(self._terminator)
        self._rest = before
        return self._end(cut_off=False) if terminator else self._take()

    def finish(self) -> list[Delta]:
        """What is left, when nothing comes any more."""
        return [] if self._ended else self._end(cut_off=True)

    def _take(self, final: bool = False) -> list[Delta]:
        """What is certain; keeps what may be the beginning of a tag, and a call that is not whole."""
        deltas: list[Delta] = []
        while (found := self._next_mark(final)) is not None:
            place, mark = found
            before, self._rest = self._rest[:place], self._rest[place + len(mark) :]
            deltas += [_whole(before)] if self._kind == "tool_call" else self._tell(before)
            self._kind = self._after(mark)
            self._space, self._after_tag = "", True
        if self._kind != "tool_call":
            marks = (*self._marks[self._kind], self._terminator)
            certain = len(self._rest) - max(partial_match(self._rest, mark) for mark in marks)
            deltas += self._tell(self._rest[:certain])
            self._rest = self._rest[certain:]
        return deltas

    def _after(self, mark: str) -> Kind:
        """What follows a tag."""
        if mark == self._call:
            self._begun = True
            return "tool_call"
        # A prompt may have opened the block already; within an answer it is a tag that belongs nowhere.
        return "reasoning" if mark == THINK and not self._begun else "text"

    def _end(self, cut_off: bool) -> list[Delta]:
        """All that is left. cut_off: it may end within a tag."""
        self._ended = True
        deltas = self._take(final=True)
        if self._kind == "tool_call":
            (mark,) = self._marks["tool_call"]
            raw = self._rest[: len(self._rest) - partial_match(self._rest, mark)].strip()
            return [*deltas, Delta("tool_call", call=ToolCall("", None, raw, CUT_OFF))]
        if cut_off and len(self._rest) >= _CLEARLY_A_TAG:
            return deltas
        deltas += self._tell(self._rest)
        if self._kind == "text" and self._space and not self._after_tag:
            deltas.append(Delta("text", self._space))
        return deltas

    def _next_mark(self, final: bool) -> tuple[int, str] | None:
        """The first tag that ends what is being read now, and where it stands."""
        marks = self._marks[self._kind]
        found = [(place, mark) for mark in marks if (place := self._rest.find(mark)) >= 0]
        if not found:
            return None
        first = place, mark = min(found)
        if self._kind == "tool_call":
            # The arguments of a call may have its tag in a text.
            while _within_text(self._rest[:place]):
                place = self._rest.find(mark, place + 1)
                if place < 0:
                    return first if final else None
        return place, mark

    def _tell(self, piece: str) -> list[Delta]:
        """A piece of the reasoning or of the text, but for white space that may stand beside a tag."""
        piece = self._space + piece
        self._space = ""
        if self._after_tag:
            if not piece.strip():
                self._space = piece
                return []
            # What a tag parts must not run together.
            piece = ("\n" if self._kind in self._told else "") + piece.lstrip("\n")
            self._after_tag = False
        told = piece.rstrip("\n")
        self._space = piece[len(told) :]
        if not told:
            return []
        self._told.add(self._kind)
        self._begun |= self._kind == "text"
        return [Delta(self._kind, told)]


def _whole(raw: str) -> Delta:
    """A call that has its end tag."""
    raw = raw.strip()
    name = ""
    try:
        call = _STRICT.decode(raw)
        if not isinstance(call, dict):
            raise ValueError('it is no object with "name" and "arguments"')
        if not isinstance(call.get("name"), str) or not call["name"]:
            raise ValueError('it has no "name"')
        json.dumps(call, ensure_ascii=False).encode()  # half a surrogate pair has no UTF-8
        name, arguments = call["name"], call.get("arguments")
        if isinstance(arguments, str):
            arguments = _STRICT.decode(arguments) if arguments.strip() else None
        if arguments is None:  # as in data: none are {}
            arguments = {}
        if not isinstance(arguments, dict):
            raise ValueError('its "arguments" are no object')
    except (ValueError, RecursionError) as error:
        return Delta("tool_call", call=ToolCall(name, None, raw, _reason(error)))
    return Delta("tool_call", call=ToolCall(name, arguments, raw, None))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} (character {error.pos + 1})"
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _within_text(json_text: str) -> bool:
    """Whether JSON breaks off inside a string. No string has a line end, so that before a tag tells it from one."""
    try:
        _STRICT.decode(json_text)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return False


def _refuse(constant: str) -> Never:
    raise ValueError(f"{constant} is not JSON")


# Python's own reading of NaN and Infinity is of no use to whoever runs the tool.
_STRICT = json.JSONDecoder(parse_constant=_refuse)
