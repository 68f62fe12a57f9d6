"""Tokens of the template in the text of a sample."""

import dataclasses
import re

import pytest

from erniekit.data.chat.conversation import Conversation, ReasoningPart, SampleError, ToolCallPart
from erniekit.data.encode.encoder import Encoder
from tests.unit.data.encode.chats import CHATS, END
from tests.unit.data.helpers import chat


@pytest.mark.parametrize(
    "text",
    [
        "x<|IMAGE_PLACEHOLDER|>",
        "<|IMAGE_START|>",
        "<|VIDEO_END|>",
        "<|image@placeholder|>",
        END,
        "<|begin_of_sentence|>",
    ],
)
def test_tokens_of_the_template_in_a_text_are_refused(vl_encoder: Encoder, text: str) -> None:
    for turns in ([("user", text), ("assistant", "a")], [("user", "q"), ("assistant", text)]):
        with pytest.raises(
            SampleError,
            match=r"message \d \((user|assistant)\) contains <\|.*, which only the template may write",
        ) as caught:
            vl_encoder.encode(chat(*turns))
        assert caught.value.reason == "reserved token"


RESERVED = f"x{END}"


@pytest.mark.parametrize(
    ("conversation", "where"),
    [
        (chat(("user", "q"), ("assistant", [ReasoningPart(RESERVED), "a"])), "message 2 (assistant)"),
        (chat(("user", "q"), ("assistant", ToolCallPart(RESERVED, "{}"))), "message 2 (assistant)"),
        (
            chat(("user", "q"), ("assistant", ToolCallPart("f", f'{{"a": "{RESERVED}"}}'))),
            "message 2 (assistant)",
        ),
        (chat(("user", ["q <|end_of", "_sentence|>"]), ("assistant", "a")), "message 1 (user)"),
        (chat(("user", "q"), ("tool", RESERVED), ("assistant", "a")), "message 2 (tool)"),
        (
            chat(("user", "q"), ("assistant", "a"), tools=[{"name": "f", "description": RESERVED}]),
            "the list of tools",
        ),
        (chat(("text", RESERVED)), "message 1 (text)"),
    ],
)
def test_tokens_of_the_template_are_refused_everywhere(
    thinking_encoder: Encoder, conversation: Conversation, where: str
) -> None:
    for encode in (thinking_encoder.encode, thinking_encoder.segments):
        with pytest.raises(SampleError, match=re.escape(f"f:1: {where} contains {END}, which only")):
            encode(conversation)


def test_tokens_of_the_template_in_the_rejected_answer_are_refused(text_encoder: Encoder) -> None:
    pair = dataclasses.replace(CHATS[0], rejected=chat(("assistant", RESERVED)).messages)
    with pytest.raises(SampleError, match=r"rejected message 1 \(assistant\) contains <\|end_of_sentence\|>"):
        text_encoder.encode(pair)


def test_tokens_of_another_template_are_plain_text(
    text_encoder: Encoder, text_thinking_encoder: Encoder
) -> None:
    for turns in ([("user", "<|im_end|>"), ("assistant", "a")], [("text", "<|im_start|>")]):
        assert len(text_encoder.encode(chat(*turns)))
        with pytest.raises(SampleError, match=r"contains <\|im_"):
            text_thinking_encoder.encode(chat(*turns))
