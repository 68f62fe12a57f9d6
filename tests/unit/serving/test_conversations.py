from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
from erniekit.data.media.access import PUBLIC_URLS
from erniekit.serving.conversations import to_conversation
from tests.unit.data.helpers import data_uri, encoded, noise

TOOL = {"name": "time", "parameters": {"type": "object"}}


def _read(messages: list[Any], tools: Any = None, **options: Any) -> Conversation:
    return to_conversation(messages, tools, base_dir=Path("/data"), sample_id="request 1", **options)


def test_a_chat_as_clients_send_it() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "Asia"}'}}
    uri = data_uri(noise(56, 56))
    messages = [
        {"role": "developer", "content": "Be brief.", "name": "me"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": uri, "detail": "low"}},
                {"type": "text", "text": "When?"},
                {"type": "video_url", "video_url": {"url": "clip.mp4"}},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
    ]
    found = _read(messages, [{"type": "function", "function": TOOL}])
    assert found.messages == (
        Message("system", (TextPart("Be brief."),), False),
        Message(
            "user", (ImagePart(encoded(noise(56, 56))), TextPart("When?"), VideoPart("/data/clip.mp4")), False
        ),
        Message("assistant", (ReasoningPart("hm"), ToolCallPart("time", '{"zone": "Asia"}')), True),
        Message("tool", (TextPart("12:00"),), False),
    )
    assert found.tools == ({"type": "function", "function": TOOL},)
    assert found.sample_id == "request 1"


@pytest.mark.parametrize("text", ["<image>", "a <video> b", "<image><image>", ""])
def test_marks_in_texts_are_text(text: str) -> None:
    assert _read([{"role": "user", "content": text}]).messages[0].parts == (TextPart(text),)


def test_urls_only_where_they_are_allowed() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    messages = [{"role": "user", "content": [image]}]
    assert _read(messages, access=PUBLIC_URLS).messages[0].parts == (ImagePart("https://example.com/a.png"),)
    with pytest.raises(SampleError, match="URLs are not fetched"):
        _read(messages)


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        ([], None, "at least one message"),
        (["hello"], None, "message 1 must be an object"),
        ([{"role": "user"}], None, 'has no "content"'),
        ([{"role": "user", "content": 3}], None, "must be a string or a list of parts"),
        ([{"role": "boss", "content": "a"}], None, "unknown role"),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
            None,
            "can only be the first",
        ),
        ([{"role": "user", "content": "half \ud800"}], None, "surrogate"),
        ([{"role": "user", "content": "a"}], [{"type": "function"}], "tool 1 must be"),
        ([{"role": "user", "content": "a"}], [{"type": "web_search"}], 'must be "function"'),
    ],
)
def test_what_is_wrong_is_reported(messages: list[Any], tools: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message) as error:
        _read(messages, tools)
    assert error.value.sample_id == "request 1"
