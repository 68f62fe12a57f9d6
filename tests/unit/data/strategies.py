"""Hypothesis strategies: JSON values, and conversations as formats give them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from typing import Any

from hypothesis import strategies as st

from erniekit.data.chat.conversation import (
    Conversation,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    VideoPart,
)

# With characters that JSON, marks and line ends make special; half surrogate pairs are no text.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["<image>", "a<video>\n", "<img>a.png</img>", "<bbox>", "\u2028", '"\\', "<think>x</think>", "{}", "[1]"]
)
SOME_TEXT = TEXT.filter(bool)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(
    [
        *(
            "messages",
            "role",
            "content",
            "type",
            "text",
            "image",
            "image_url",
            "url",
            "images",
            "videos",
            "video",
        ),
        *(
            "tools",
            "tool_calls",
            "function",
            "name",
            "arguments",
            "loss",
            "weight",
            "label",
            "system",
            "history",
        ),
        *("conversations", "from", "value", "instruction", "input", "output", "query", "response", "prompt"),
        *("chosen", "rejected", "rejected_response", "rejected_messages", "src", "tgt", "sort", "is_system"),
        *(
            "text_info",
            "tag",
            "image_info",
            "video_info",
            "matched_text_index",
            "order",
            "index",
            "tool_response",
        ),
        *(
            "video_uid",
            "image_type",
            "reasoning_content",
            "path",
            "bytes",
            "completion",
            "question",
            "answer",
        ),
        *("objects", "ref", "bbox", "bbox_type", "image_id", "rejected_objects", "rejected_images"),
        *("rejected_prompt", "fps", "nframes", "video_start", "video_end", "max_pixels", "timestamps"),
    ]
)
WORDS = st.sampled_from(
    [
        *(
            "user",
            "assistant",
            "system",
            "tool",
            "human",
            "gpt",
            "function_call",
            "observation",
            "mask",
            "no_mask",
        ),
        *(
            "text",
            "image",
            "video",
            "function",
            "<image>",
            "<bbox>",
            "<ref-object>",
            "<img>a.png</img>",
            "norm1",
            "{}",
            "a.png",
            "https://x/y",
            "data:image/png;base64,AA==",
        ),
    ]
)
JSON = st.recursive(
    SCALARS | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=12,
)
_PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
_OBJECTS = st.dictionaries(TEXT, _PLAIN, max_size=3)

_PATHS = st.sampled_from(["/data/a.png", "/data/b c/猫.jpg", "rel/a.png", "/x/%20.png"])
_IMAGE_SOURCES = _PATHS | st.binary(max_size=8)
_AREAS = st.none() | st.integers(1, 99)
_IMAGES = st.builds(ImagePart, _IMAGE_SOURCES) | st.builds(ImagePart, _IMAGE_SOURCES, _AREAS)
_SOURCES = _IMAGE_SOURCES | st.lists(_IMAGE_SOURCES, min_size=1, max_size=3).map(tuple)
_VIDEOS = st.builds(VideoPart, _SOURCES) | st.builds(
    VideoPart,
    _SOURCES,
    fps=st.none() | st.floats(0.1, 99),
    max_frames=_AREAS,
    start=st.none() | st.floats(0, 9),
    end=st.none() | st.floats(10, 99),
    max_pixels=_AREAS,
    times=st.just(()) | st.lists(st.floats(0, 99), max_size=3).map(sorted).map(tuple),
)
_ARGUMENTS = _OBJECTS.map(json.dumps) | _OBJECTS.map(lambda value: json.dumps(value, indent=1))
_TOOLS = st.builds(
    lambda name, more: {"type": "function", "function": {"name": name, **more}}, SOME_TEXT, _OBJECTS.filter(
        lambda value: "name" not in value and None not in value.values()
    )
)  # fmt: skip


def _texts(*, least: int) -> st.SearchStrategy[tuple[Part, ...]]:
    return st.lists(st.builds(TextPart, TEXT), min_size=least, max_size=2).map(tuple)


@st.composite
def answers(draw: st.DrawFn, trained: bool | None = None) -> Message:
    """An assistant message: reasoning, texts, calls, in this order and not empty; with loss, parts without it."""
    switch = st.just(True) if trained else st.booleans()
    reasoning = draw(st.lists(st.builds(ReasoningPart, SOME_TEXT, switch), max_size=2))
    calls = draw(st.lists(st.builds(ToolCallPart, SOME_TEXT, _ARGUMENTS, switch), max_size=2))
    texts = list(
        draw(st.lists(st.builds(TextPart, SOME_TEXT, switch), min_size=0 if calls else 1, max_size=2))
    )
    has_loss = any(part.trained for part in (*reasoning, *texts, *calls))
    return Message(
        "assistant", (*reasoning, *texts, *calls), has_loss and (draw(switch) if trained is None else trained)
    )


_USERS = st.builds(
    Message,
    st.just("user"),
    st.lists(st.builds(TextPart, TEXT) | _IMAGES | _VIDEOS, max_size=3).map(tuple),
    st.just(False),
)
_RESULTS = st.builds(
    Message,
    st.just("tool"),
    st.lists(st.builds(TextPart, TEXT) | _IMAGES | _VIDEOS, max_size=2).map(tuple),
    st.just(False),
)
_SYSTEMS = st.builds(Message, st.just("system"), _texts(least=1), st.just(False))
_PLAIN_TEXTS = st.builds(lambda text: Message("text", (TextPart(text),), True), SOME_TEXT)


@st.composite
def exchanges(draw: st.DrawFn, trained: bool | None = None) -> list[Message]:
    """A user's message, or an answer with a result for each of its calls."""
    message = draw(_USERS | answers(trained))
    calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
    return [message, *(draw(_RESULTS) for _ in calls)]


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Chats, preference pairs and plain texts, as any format may give them."""
    kind = draw(st.sampled_from(["chat", "pair", "text"]))
    if kind == "text":
        return Conversation((draw(_PLAIN_TEXTS),), "f:1")
    tools = tuple(draw(st.lists(_TOOLS, max_size=2)))
    opening = draw(st.lists(_SYSTEMS, max_size=1))
    if kind == "chat":
        turns = list(chain.from_iterable(draw(st.lists(exchanges(), max_size=3))))
        turns += draw(st.lists(_USERS | answers(), min_size=0 if opening or turns else 1, max_size=1))
        if [message.role for message in (*opening, *turns)] == ["assistant"]:  # which is plain text
            turns = [draw(_USERS), *turns]
        return Conversation((*opening, *turns), "f:1", tools)
    turns = list(chain.from_iterable(draw(st.lists(exchanges(trained=False), max_size=2))))
    last = draw(exchanges(trained=False).filter(lambda found: found[-1].role != "assistant"))
    chosen, rejected = (
        draw(
            answers(trained=True).map(lambda answer: [answer])
            | st.builds(
                lambda *found: [*found[0], *found[1:]],
                exchanges(trained=True).filter(lambda found: found[0].role == "assistant"),
                _USERS,
                answers(),
            )
        )
        for _ in range(2)
    )
    if [(m.role, m.parts) for m in chosen] == [(m.role, m.parts) for m in rejected]:
        rejected = [Message("assistant", (TextPart("no"), *rejected[0].parts), True), *rejected[1:]]
        if rejected[0].parts and isinstance(rejected[0].parts[1], ReasoningPart):
            rejected = [Message("assistant", (TextPart("no, no"),), True)]
    other: tuple[Message, ...] = ()
    if draw(st.booleans()):
        image = ImagePart("/data/other.png")
        asked = replace(last[-1], role="user", parts=(image, *last[-1].parts))
        other = (*opening, *turns, *last[:-1], asked) if last[-1].role == "user" else ()
    return Conversation((*opening, *turns, *last, *chosen), "f:1", tools, tuple(rejected), other)


def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value in which one place, anywhere, has gone or is something else."""
    if isinstance(value, dict | list) and value and draw(st.booleans()):
        key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        changed = value.copy()
        if draw(st.integers(0, 3)) == 0:
            del changed[key]
        else:
            changed[key] = mutated(draw, value[key])
        return changed
    return draw(JSON)
