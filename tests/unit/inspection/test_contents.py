"""The contents of a sample, and when two samples are equal."""

import dataclasses

import pytest

from erniekit.data.chat.conversation import Conversation, ImagePart, ReasoningPart, ToolCallPart, VideoPart
from erniekit.inspection.contents import CONTENTS, all_characters, contents, digest
from tests.unit.data.helpers import chat

TOOL = {"type": "function", "function": {"name": "look"}}
CHAT = chat(("user", "hello"), ("assistant", "hi"))


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (CHAT, {"text only"}),
        (chat(("user", [ImagePart("a.png"), "what?"]), ("assistant", "x")), {"with pictures"}),
        (
            chat(("user", [VideoPart("a.mp4"), ImagePart("a.png")]), ("assistant", "x")),
            {"with videos", "with pictures"},
        ),
        (
            chat(("user", "x"), ("assistant", ToolCallPart("look", "{}")), tools=[TOOL]),
            {"text only", "with tools listed", "with tool calls"},
        ),
        (chat(("user", "x"), ("assistant", [ReasoningPart("hm"), "y"])), {"text only", "with reasoning"}),
        (chat(("user", "x"), ("assistant", "\n<think>hm</think>y")), {"text only", "with reasoning"}),
        (chat(("user", "<think>x"), ("assistant", [ReasoningPart(" "), "y"])), {"text only"}),
        (
            dataclasses.replace(CHAT, rejected=chat(("assistant", "no")).messages),
            {"text only", "preference pairs"},
        ),
        (chat(("text", "words")), {"plain text"}),
    ],
)
def test_contents(conversation: Conversation, expected: set[str]) -> None:
    assert contents(conversation) == expected
    assert expected <= set(CONTENTS)


def test_characters_count_tools_and_calls_but_no_images() -> None:
    conversation = chat(
        ("user", [ImagePart("a.png"), "four"]), ("assistant", ToolCallPart("look", "{}")), tools=[TOOL]
    )
    assert all_characters(conversation) == 4 + len("look{}") + len(
        '[{"type": "function", "function": {"name": "look"}}]'
    )


def test_the_same_sample_elsewhere_has_the_same_digest() -> None:
    assert digest(dataclasses.replace(CHAT, sample_id="other:7")) == digest(CHAT)
    image = chat(("user", [b"pixels", "?"]), ("assistant", "x"))
    assert digest(image) == digest(chat(("user", [b"pixels", "?"]), ("assistant", "x"), sample_id="g:2"))


@pytest.mark.parametrize(
    "other",
    [
        chat(("user", "hello "), ("assistant", "hi")),
        chat(("system", "hello"), ("assistant", "hi")),
        chat(("user", "hello"), ("assistant", "hi", False)),
        chat(("user", ["hel", "lo"]), ("assistant", "hi")),
        chat(("user", "hello"), ("assistant", ReasoningPart("hi"))),
        chat(("user", [ImagePart("hello")]), ("assistant", "hi")),
        chat(("user", [VideoPart("hello")]), ("assistant", "hi")),
        chat(("user", "hello"), ("assistant", "hi"), tools=[TOOL]),
        dataclasses.replace(CHAT, rejected=chat(("assistant", "no")).messages),
    ],
)
def test_any_difference_changes_the_digest(other: Conversation) -> None:
    assert digest(other) != digest(CHAT)


def test_frames_of_a_video_are_not_a_longer_name() -> None:
    one, two = VideoPart(("ab", "c")), VideoPart(("a", "bc"))
    assert digest(chat(("user", one), ("assistant", "x"))) != digest(chat(("user", two), ("assistant", "x")))
