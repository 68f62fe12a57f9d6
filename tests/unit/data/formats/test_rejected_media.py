"""Preference pairs whose rejected answer is about other images or videos."""

from __future__ import annotations

from typing import Any

import pytest

from erniekit.data.chat.conversation import Conversation, ImagePart, Message, SampleError, TextPart, VideoPart
from tests.unit.data.formats.parsing import outline, parse

ASKED = {"role": "user", "content": "<image>Colour?"}
GOOD = {"role": "assistant", "content": "red"}
OTHER = {"images": ["red.png"], "rejected_images": ["blue.png"]}
RED, BLUE = ImagePart("/data/red.png"), ImagePart("/data/blue.png")


def prompts(found: Conversation) -> tuple[Any, Any]:
    return found.messages[0].parts[0], found.rejected_prompt[0].parts[0]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [ASKED, GOOD], "rejected_response": "crimson"},
        {
            "messages": [ASKED, GOOD],
            "rejected_messages": [ASKED, {"role": "assistant", "content": "crimson"}],
        },
        {"messages": [ASKED], "chosen": "red", "rejected": "crimson"},
        {"messages": [ASKED], "chosen": GOOD, "rejected": {"role": "assistant", "content": "crimson"}},
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, {"role": "assistant", "content": "crimson"}]},
        {"query": "<image>Colour?", "response": "red", "rejected_response": "crimson"},
        {"prompt": "<image>Colour?", "chosen": "red", "rejected": "crimson"},
        {"instruction": "<image>Colour?", "output": "red", "rejected_response": "crimson"},
        {"instruction": "<image>Colour?", "chosen": "red", "rejected": "crimson"},
        {
            "conversations": [{"from": "human", "value": "<image>Colour?"}],
            "chosen": {"from": "gpt", "value": "red"},
            "rejected": {"from": "gpt", "value": "crimson"},
        },
    ],
)
def test_the_rejected_answer_has_its_own_images(record: dict[str, Any]) -> None:
    found = parse({**record, **OTHER})
    assert prompts(found) == (RED, BLUE)
    assert found.messages[1:] == (Message("assistant", (TextPart("red"),), True),)
    assert outline(found.rejected) == [("assistant", "crimson", True)]
    assert not found.rejected_prompt[0].trained
    assert found.rejected_prompt[0].parts[1:] == found.messages[0].parts[1:]
    # Without them, and with none in them, both see the same.
    for value in (None, []):
        same = parse({**record, **OTHER, "rejected_images": value})
        assert (same.rejected_prompt, same.messages) == ((), found.messages)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [ASKED, GOOD]},
        {"messages": [ASKED, GOOD], "rejected_messages": [ASKED, GOOD]},
        {"query": "<image>Colour?", "response": "red"},
        {"instruction": "<image>Colour?", "output": "red"},
        {"conversations": [{"from": "human", "value": "<image>Colour?"}, {"from": "gpt", "value": "red"}]},
    ],
)
def test_other_images_alone_make_a_pair_of_one_answer(record: dict[str, Any]) -> None:
    found = parse({**record, **OTHER})
    assert prompts(found) == (RED, BLUE)
    assert found.rejected == found.messages[1:]
    with pytest.raises(SampleError, match="the chosen and the rejected answer are the same"):
        parse({**record, "images": ["red.png"], "rejected_images": ["red.png"]})


def test_images_in_the_content_and_videos() -> None:
    inline = {
        "role": "user",
        "content": [{"type": "image", "image": "red.png"}, {"type": "text", "text": "?"}],
    }
    found = parse({"messages": [inline, GOOD], "rejected_images": ["blue.png"]})
    assert prompts(found) == (RED, BLUE)
    asked = {"role": "user", "content": "<image><video>?"}
    found = parse({"messages": [asked, GOOD], **OTHER, "videos": ["1.mp4"], "rejected_response": "no"})
    assert found.rejected_prompt[0].parts[:2] == (BLUE, VideoPart("/data/1.mp4"))
    found = parse(
        {"messages": [asked, GOOD], "images": "red.png", "videos": ["1.mp4"], "rejected_videos": ["2.mp4"]}
    )
    assert found.rejected_prompt[0].parts[:2] == (RED, VideoPart("/data/2.mp4"))


def test_earlier_turns_have_other_images_too() -> None:
    chat = [ASKED, GOOD, {"role": "user", "content": "And this?<image>"}, GOOD]
    record = {"messages": chat, "images": ["1.png", "2.png"], "rejected_images": ["1.png", "3.png"]}
    found = parse(record)
    assert found.rejected_prompt[0] == found.messages[0]
    assert found.rejected_prompt[2].parts[1] == ImagePart("/data/3.png")
    assert [message.trained for message in found.messages] == [False, False, False, True]


@pytest.mark.parametrize("images", [["1.png", "2.png"], ["1.png", ""]])
def test_as_many_images_as_marks(images: list[str]) -> None:
    for more in ({}, {"rejected_response": "no"}):
        with pytest.raises(SampleError, match="rejected_images"):
            parse({"messages": [ASKED, GOOD], "images": ["red.png"], "rejected_images": images, **more})


def test_prompts_of_other_words_are_refused() -> None:
    other = {"role": "user", "content": "<image>Shape?"}
    with pytest.raises(SampleError, match="before the answers of a pair"):
        parse({"messages": [ASKED, GOOD], "rejected_messages": [other, GOOD], **OTHER})


def test_a_prompt_of_its_own() -> None:
    prompt = [{"role": "user", "content": "What shape?"}]
    asked = {"role": "user", "content": "Colour?"}
    found = parse({"messages": [asked], "chosen": "red", "rejected": "round", "rejected_prompt": prompt})
    assert outline(found.rejected_prompt) == [("user", "What shape?", False)]


def test_all_after_the_last_question_is_the_chosen_answer() -> None:
    chat = [
        {"role": "user", "content": "q"},
        {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'},
        {"role": "tool_response", "content": "1"},
        {"role": "assistant", "content": "good"},
    ]
    for rejected in ("bad", [{"role": "assistant", "content": "bad"}]):
        found = parse({"messages": chat, "rejected_response": rejected})
        assert [message.trained for message in found.messages] == [False, True, False, True]
        assert outline(found.rejected) == [("assistant", "bad", True)]


def test_what_the_rejected_answer_cannot_have_of_its_own() -> None:
    for key in ("rejected_tools", "rejected_audios"):
        with pytest.raises(SampleError, match=key):
            parse({"messages": [ASKED, GOOD], "images": ["red.png"], "rejected_response": "no", key: ["x"]})
