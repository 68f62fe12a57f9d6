"""Messages of a request: parts, media, calls and results of tools."""

from __future__ import annotations

from typing import Any

import pytest

from erniekit.data.chat.conversation import ImagePart, ReasoningPart, TextPart, ToolCallPart, VideoPart
from erniekit.data.media.access import PUBLIC_URLS
from erniekit.serving.fields import RequestError
from erniekit.serving.request import read_conversation
from tests.unit.generation.scripted import TOOLS
from tests.unit.serving.requests import DATA, QUESTION, messages_of, request_of


def test_a_chat_with_media_and_calls() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "time", "arguments": '{"a": 1}'}}
    found = messages_of(
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}},
                {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,eHh4"}},
                {"type": "text", "text": "What <image> is it?"},
            ],
        },
        {"role": "assistant", "content": None, "reasoning_content": "Hm", "tool_calls": [call]},
        {"role": "tool", "content": "noon", "tool_call_id": "x"},
        tools=list(TOOLS),
    )
    assert [message.role for message in found] == ["system", "user", "assistant", "tool"]
    assert found[1].parts == (ImagePart(b"xxx"), VideoPart(b"xxx"), TextPart("What <image> is it?"))
    assert found[2].parts == (ReasoningPart("Hm"), ToolCallPart("time", '{"a": 1}'))


def test_keys_that_clients_put_into_messages_change_nothing() -> None:
    def chat(**more: Any) -> list[dict[str, Any]]:
        text = {"type": "text", "text": "Look", **({"cache_control": {"type": "ephemeral"}} if more else {})}
        return [
            {"role": "user", "content": [text, {"type": "image_url", "image_url": {"url": DATA}}], **more},
            {"role": "assistant", "content": "Seen.", **more},
            {"role": "user", "content": "And?"},
        ]

    # What OpenAI's client keeps of an answer, and what other clients add.
    more = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    more |= {"id": "msg_1", "status": "completed", "created_at": 5, "model": "m", "metadata": {"a": 1}}
    request = request_of(messages=chat(**more))
    found = read_conversation(request, "request 1")
    assert found == read_conversation(request_of(messages=chat()), "request 1")
    assert found.notices == ()


def test_keys_that_nothing_reads_are_noticed_and_those_that_matter_refused() -> None:
    image = {"type": "image_url", "image_url": {"url": DATA, "detail": "low", "crop": 2}, "caption": "x"}
    request = request_of(messages=[{"role": "user", "content": [image], "mood": "good"}])
    assert sorted(read_conversation(request, "request 1").notices) == [
        "key 'caption' of a part is not read",
        "key 'crop' of a part is not read",
        "key 'mood' of a message is not read",
    ]
    for key, value in (("audio", {"id": "a"}), ("prefix", True), ("images", ["/etc/passwd"])):
        with pytest.raises(
            RequestError, match=f'message 1: "{key}"|messages.0.{key}: is not supported'
        ) as error:
            messages_of({"role": "user", "content": "x", key: value})
        assert error.value.param == "messages"


@pytest.mark.parametrize("key", ["path", "url", "image", "video", "frames", "value", "bytes"])
def test_no_other_key_of_a_part_names_a_file(key: str) -> None:
    for part in (
        {"type": "image_url", "image_url": {"url": DATA}, key: "/etc/passwd"},
        {"type": "image_url", "image_url": {"url": DATA, **({} if key == "url" else {key: "/etc/passwd"})}},
    ):
        assert messages_of({"role": "user", "content": [part]})[0].parts == (ImagePart(b"xxx"),)


def test_parts_of_other_names_are_text_and_reasoning() -> None:
    said = [{"type": "thinking", "thinking": "Hm"}, {"type": "output_text", "text": "a", "annotations": []}]
    found = messages_of(
        {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"role": "assistant", "content": said},
        QUESTION,
    )
    assert found[0].parts == (TextPart("q"),)
    assert found[1].parts == (ReasoningPart("Hm"), TextPart("a"))


def _calling(*ids: str, arguments: str = "{}") -> dict[str, Any]:
    function = {"name": "time", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": id, "type": "function", "function": function} for id in ids],
    }


def _result(content: Any, id: str) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": id}


@pytest.mark.parametrize("arguments", ["", " ", "null", "{}"])
def test_results_of_a_request_stand_in_the_order_of_the_calls(arguments: str) -> None:
    image = [{"type": "image_url", "image_url": {"url": DATA}}, {"type": "text", "text": "<image>"}]
    calling = _calling("x", "y", arguments=arguments)
    found = messages_of(QUESTION, calling, _result(image, "y"), _result("one <image>", "x"))
    assert found[1].parts == (ToolCallPart("time", "{}"),) * 2
    assert found[2].parts == (TextPart("one <image>"),)
    assert found[3].parts == (ImagePart(b"xxx"), TextPart("<image>"))
    path = [{"type": "image_url", "image_url": {"url": "x.png"}}]
    with pytest.raises(RequestError, match=r"messages\.2\.content\.0: send the file itself as a data: URI"):
        messages_of(QUESTION, _calling("x"), _result(path, "x"))


def test_tools_are_left_out_where_the_model_must_not_call() -> None:
    request = request_of(tools=list(TOOLS))
    assert request.may_call
    assert read_conversation(request, "x").tools == TOOLS
    request = request_of(tools=list(TOOLS), tool_choice="none")
    assert not request.may_call
    assert read_conversation(request, "x").tools == ()


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize(
    "url", ["/etc/passwd", "x.png", "file:///x.png", "ftp://h/x.png", "iVBORw0KGgo" * 9, ""]
)
def test_no_file_of_the_server_is_read(kind: str, url: str) -> None:
    for media in ({"url": url}, url):
        part = {"type": f"{kind}_url", f"{kind}_url": media}
        with pytest.raises(
            RequestError, match=r"messages\.0\.content\.0: send the file itself as a data: URI"
        ):
            messages_of({"role": "user", "content": [part]}, access=PUBLIC_URLS)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "x.png"},
        {"type": "video", "video": ["x.png"]},
        {"type": "image_url", "path": "x.png"},
        {"type": "image_url", "url": DATA},
        {"type": "image_url", "image_url": {"path": "x.png"}},
        {"type": "image_url", "image_url": {"bytes": "eHh4"}},
        {"type": "input_audio", "input_audio": {}},
        "Hello",
        None,
    ],
)
def test_other_ways_to_name_media_are_refused(part: Any) -> None:
    with pytest.raises(RequestError, match=r"messages\.0\.content\.0: "):
        messages_of({"role": "user", "content": [part]})


@pytest.mark.parametrize("role", ["user", "tool", "function", "assistant"])
@pytest.mark.parametrize("key", ["images", "image", "videos", "video"])
def test_media_beside_a_text_are_refused(role: str, key: str) -> None:
    with pytest.raises(RequestError, match=rf"messages\.0\.{key}: "):
        messages_of({"role": role, "content": "x", key: ["/etc/x.png"]}, access=PUBLIC_URLS)


@pytest.mark.parametrize(
    "text", ["<img>/etc/x.png</img>", "<image>/etc/x.png</image>", "<video>x.mp4</video>"]
)
def test_paths_in_texts_are_text(text: str) -> None:
    assert messages_of({"role": "user", "content": text})[0].parts == (TextPart(text),)


def test_urls_are_for_servers_that_allow_them() -> None:
    url = "https://example.com/x.png"
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    with pytest.raises(RequestError, match="started with --allow-urls"):
        messages_of(message)
    assert messages_of(message, access=PUBLIC_URLS)[0].parts == (ImagePart(url),)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "robot", "content": "x"}], "message 1: unknown role 'robot'"),
        ([QUESTION, {"role": "system", "content": "x"}], "a system message can only be the first"),
        ([{"content": "x"}], "no role, only the key 'content'"),
        ([{"role": "user", "text": "x"}], "has no \"content\", only the keys 'role', 'text'"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], '"text" must be a string'),
        ([QUESTION, {"role": "assistant", "tool_calls": [{"function": {}}]}], "has no name"),
        ([QUESTION, _calling("x", "y"), _result("1", "z"), _result("2", "x")], "message 3: tool_call_id 'z'"),
        ([QUESTION, _calling("x", "y"), _result("1", "x")], "message 2: the result of its tool call 2"),
        ([QUESTION, _calling("x"), QUESTION], "message 2: the result of its tool call 1 .* before message 3"),
        ([QUESTION, _result("1", "x")], "message 2: the result of a tool, but message 1 has no tool_calls"),
        ([QUESTION, _calling("x"), _result("1", "x"), _result("2", "x")], "message 4: a second result"),
        ([{"role": "system", "content": "s", "tools": list(TOOLS)}, QUESTION], "messages.0: tools belong in"),
    ],
)
def test_chats_that_are_none(messages: list[Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        messages_of(*messages)
    assert error.value.param == "messages"
