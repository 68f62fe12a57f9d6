from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from erniekit.data.chat.conversation import (
    ImagePart,
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    VideoPart,
)
from erniekit.data.chat.families import TEMPLATES
from erniekit.data.media.access import NO_URLS, PUBLIC_URLS, MediaAccess
from erniekit.generation.sampling import Sampling
from erniekit.serving.fields import IGNORED, NEUTRAL, RequestError
from erniekit.serving.request import (
    ChatRequest,
    read_conversation,
    read_request,
    read_sampling,
)
from erniekit.serving.thinking import THINKING_FIELDS
from tests.unit.generation.scripted import TOOLS

QUESTION = {"role": "user", "content": "Hello"}
DATA = "data:image/png;base64,eHh4"


def _request(**fields: Any) -> ChatRequest:
    return read_request(json.dumps({"messages": [QUESTION], **fields}).encode())


def _refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as error:
        _request(**fields)
    return error.value


def _conversation(*messages: Any, access: MediaAccess = NO_URLS, **fields: Any) -> tuple[Message, ...]:
    request = _request(messages=list(messages), **fields)
    return read_conversation(request, "request 1", access).messages


def test_what_changes_no_answer_is_passed_over() -> None:
    plain = _request()
    assert plain == _request(
        user="me",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        n=1,
        logprobs=False,
        top_logprobs=None,
        response_format={"type": "text"},
        frequency_penalty=0.0,
        presence_penalty=0,
        logit_bias={},
        modalities=["text"],
        parallel_tool_calls=True,
        temperature=None,
    )
    assert (plain.stream, plain.include_usage, plain.may_call) == (None, False, False)


@pytest.mark.parametrize(
    "name", [*NEUTRAL, *sorted(IGNORED), *sorted(THINKING_FIELDS), "stop", "top_k", "min_p", "tools", "new"]
)
def test_null_asks_for_nothing(name: str) -> None:
    assert _request(**{name: None}) == _request()


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (values, _) in NEUTRAL.items() for value in values]
)
def test_every_neutral_value_asks_for_nothing(name: str, value: Any) -> None:
    assert _request(**{name: value}) == _request()


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_any_other_value_is_refused_with_its_name_and_what_was_sent(name: str) -> None:
    error = _refused(**{name: "sesame"})
    assert str(error).startswith(f"{name}: ") and '; "sesame" was sent, leave it out' in str(error)
    assert (error.status, error.param) == (400, name)


def test_no_field_is_in_two_lists() -> None:
    heeded = set(ChatRequest.model_fields) - {"thinking"}
    names = [*heeded, *IGNORED, *NEUTRAL, *THINKING_FIELDS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "fields",
    [
        # What clients send by default: vLLM's and SGLang's own examples, SillyTavern, FastDeploy's server.
        {
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop": [],
            "length_penalty": 1.0,
            "best_of": 1,
        },
        {
            "min_tokens": 0,
            "ignore_eos": False,
            "skip_special_tokens": True,
            "spaces_between_special_tokens": True,
        },
        {"include_stop_str_in_output": False, "add_generation_prompt": True, "continue_final_message": False},
        {
            "stop": "",
            "logprobs": False,
            "top_logprobs": 0,
            "tool_choice": "none",
            "audio": None,
            "prediction": None,
        },
        {"typical_p": 1, "tfs": 1, "top_a": 0, "mirostat_mode": 0, "repeat_penalty": 1.0, "seed": -1},
        {"bad_words": [], "stop_token_ids": [], "disable_chat_template": False, "collect_metrics": False},
        {"max_tokens": -1, "max_completion_tokens": -1, "response_format": {"type": "text"}, "echo": False},
        {
            "stream_options": {"include_usage": True, "continuous_usage_stats": False},
            "cache_salt": "x",
            "rid": "y",
        },
        {
            "extra_body": {"min_p": 0, "top_k": -1.0, "extra_args": None},
            "metadata": {"min_tokens": 0, "n": "label"},
        },
    ],
)
def test_what_clients_send_by_default_changes_nothing(fields: dict[str, Any]) -> None:
    request = _request(**fields)
    defaults = Sampling(50, 0.5, stop=("x",), seed=(1 << 64) - 1)
    assert read_sampling(request, defaults, 10, 100) == defaults
    assert not request.may_call


def test_packed_fields_are_fields() -> None:
    assert _request(extra_body={"min_p": 0.1, "stop": "x"}) == _request(min_p=0.1, stop="x")
    assert str(_refused(extra_body={"min_q": 0.1})).startswith("min_q: this server does not know")
    assert str(_refused(min_p=0.2, extra_body={"min_p": 0.1})).startswith("min_p: is sent twice, also as 0.2")
    assert _request(min_p=0.1, extra_body={"min_p": 0.1}).min_p == 0.1
    # What FastDeploy takes from metadata; labels, which are texts, stay labels.
    assert _request(metadata={"top_k": 3, "temperature": "0.5", "run": 7}) == _request(top_k=3)
    assert str(_refused(metadata={"min_tokens": 3})).startswith("min_tokens: is not supported")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n", 2, "n: a request has one answer"),
        ("logprobs", True, "logprobs: is not supported"),
        ("response_format", {"type": "json_object"}, "response_format: only text is supported"),
        ("frequency_penalty", 0.1, "frequency_penalty: is not supported: use repetition_penalty"),
        ("parallel_tool_calls", False, "parallel_tool_calls: the model decides"),
        ("reasoning_effort", "low", "reasoning_effort: is not supported"),
        ("functions", [{"name": "time"}], "functions: is not supported: use tools"),
        ("tool_choice", "required", 'tool_choice: must be "auto" or "none"'),
        ("tool_choice", {"type": "function", "function": {"name": "time"}}, "tool_choice: must be"),
        ("best_of", 2, "best_of: a request has one answer; 2 was sent, leave it out or send 1"),
        ("n", True, "n: a request has one answer"),
        ("n_best", 2, "n_best: this server does not know this field"),
        ("temprature", 0.5, "temprature: this server does not know this field; did you mean temperature?"),
        ("min_tokens", 5, "min_tokens: is not supported: only end tokens"),
        ("ignore_eos", True, "ignore_eos: is not supported"),
        ("stop_token_ids", [2], "stop_token_ids: is not supported"),
        ("skip_special_tokens", False, "skip_special_tokens: answers never contain control tokens"),
        ("continue_final_message", True, "continue_final_message: the chat template always writes"),
        ("guided_json", {"type": "object"}, "guided_json: only text is supported"),
        ("mm_processor_kwargs", {"max_pixels": 9}, "mm_processor_kwargs: is not supported"),
        ("chat_template_kwargs", [1], "chat_template_kwargs: must be an object"),
        (
            "chat_template_kwargs",
            {"enable_thnking": True},
            "chat_template_kwargs.enable_thnking: this server",
        ),
        (
            "chat_template_kwargs",
            {"add_generation_prompt": False},
            "chat_template_kwargs.add_generation_prompt",
        ),
        (
            "thinking_mode",
            "half",
            'thinking_mode: must be true or false, or "open" or "close"; "half" was sent',
        ),
        ("reasoning_max_tokens", "8", "reasoning_max_tokens: must be a number of tokens"),
        ("reasoning_max_tokens", float("nan"), "reasoning_max_tokens: must be a number of tokens"),
        ("extra_body", ["min_p"], "extra_body: must be an object"),
        (
            "stream_options",
            {"continuous_usage_stats": True},
            "stream_options.continuous_usage_stats: must be False",
        ),
        ("tool_choice", ["auto"], 'tool_choice: must be "auto" or "none"'),
        ("seed", 1.5, "seed: must be a valid integer"),
        ("stream_options", {"usage": True}, "stream_options.usage: this server does not know"),
        ("stream", "yes", "stream: must be a valid boolean"),
        ("temperature", "hot", "temperature: must be a valid number"),
        ("max_tokens", 0, "max_tokens: must be greater than or equal to 1"),
        ("stop", 7, "stop: must be a valid string or must be a valid list"),
        ("messages", [], "messages: List should have at least 1 item"),
        ("messages", "Hello", "messages: must be a valid list"),
        ("tools", {"name": "time"}, "tools: must be a valid list"),
    ],
)
def test_what_would_change_the_answer_is_refused(name: str, value: Any, message: str) -> None:
    error = _refused(**{name: value})
    assert str(error).startswith(message)
    assert (error.status, error.code) == (400, None)
    assert (error.param or "").partition(".")[0] == name


def test_many_mistakes_are_one_error() -> None:
    for fields in (
        {"messages": [0] * 1000},
        {"tools": [0] * 1000},
        {"stop": [0] * 1000},
        {"stream_options": {f"new{number}": 1 for number in range(1000)}},
        {f"new{number}": 1 for number in range(1000)},
    ):
        cause = _refused(**fields).__cause__
        assert cause is None or (isinstance(cause, ValidationError) and cause.error_count() <= 2)


def test_an_endless_name_is_compared_with_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(difflib, "get_close_matches", lambda name, *_, **__: compared.append(name) or [])
    assert str(_refused(**{"y" * 100_000: 1})).startswith("yyy")
    assert [len(name) for name in compared] == [60]


def test_stop_texts_are_bounded() -> None:
    """Each token of the answer is compared with each of them."""
    for stop in (["x"] * 65, "x" * 10_001, ["x" * 5_000] * 3):
        with pytest.raises(RequestError, match="stop: at most 64 texts, of 10,000 characters together"):
            read_sampling(_request(stop=stop), Sampling(), 10, 100)
    assert len(read_sampling(_request(stop=["x", ""] * 64), Sampling(), 10, 100).stop) == 64


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON"),
        (b"{'a': 1}", "the body is not valid JSON"),
        (b"\xff", "the body is not valid JSON"),
        (b"[" * 100_000, "the body is not valid JSON"),
        (b"[]", "the body must be a JSON object"),
        (b"{}", "messages: is missing"),
        (b'{"\\ud800": 1, "messages": [{}]}', "half a surrogate pair"),
        (b'{"messages": [], "messages": []}', "the key messages is there twice"),
        (b'{"messages": ' + b"[" * 150 + b"]" * 150 + b"}", "nested more than 100 levels"),
        (b'{"messages": [' + b"[]," * 600_000 + b"[]]}", "more than 500,000 JSON values"),
    ],
)
def test_bodies_that_are_no_request(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        read_request(body)
    assert error.value.status == (413 if "500,000" in message else 400)


def test_a_chat_with_media_and_calls() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "time", "arguments": '{"a": 1}'}}
    found = _conversation(
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
    request = _request(messages=chat(**more))
    found = read_conversation(request, "request 1")
    assert found == read_conversation(_request(messages=chat()), "request 1")
    assert found.notices == ()


def test_keys_that_nothing_reads_are_noticed_and_those_that_matter_refused() -> None:
    image = {"type": "image_url", "image_url": {"url": DATA, "detail": "low", "crop": 2}, "caption": "x"}
    request = _request(messages=[{"role": "user", "content": [image], "mood": "good"}])
    assert sorted(read_conversation(request, "request 1").notices) == [
        "key 'caption' of a part is not read",
        "key 'crop' of a part is not read",
        "key 'mood' of a message is not read",
    ]
    for key, value in (("audio", {"id": "a"}), ("prefix", True), ("images", ["/etc/passwd"])):
        with pytest.raises(
            RequestError, match=f'message 1: "{key}"|messages.0.{key}: is not supported'
        ) as error:
            _conversation({"role": "user", "content": "x", key: value})
        assert error.value.param == "messages"


@pytest.mark.parametrize("key", ["path", "url", "image", "video", "frames", "value", "bytes"])
def test_no_other_key_of_a_part_names_a_file(key: str) -> None:
    for part in (
        {"type": "image_url", "image_url": {"url": DATA}, key: "/etc/passwd"},
        {"type": "image_url", "image_url": {"url": DATA, **({} if key == "url" else {key: "/etc/passwd"})}},
    ):
        assert _conversation({"role": "user", "content": [part]})[0].parts == (ImagePart(b"xxx"),)


def test_parts_of_other_names_are_text_and_reasoning() -> None:
    said = [{"type": "thinking", "thinking": "Hm"}, {"type": "output_text", "text": "a", "annotations": []}]
    found = _conversation(
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
    found = _conversation(QUESTION, calling, _result(image, "y"), _result("one <image>", "x"))
    assert found[1].parts == (ToolCallPart("time", "{}"),) * 2
    assert found[2].parts == (TextPart("one <image>"),)
    assert found[3].parts == (ImagePart(b"xxx"), TextPart("<image>"))
    path = [{"type": "image_url", "image_url": {"url": "x.png"}}]
    with pytest.raises(RequestError, match=r"messages\.2\.content\.0: send the file itself as a data: URI"):
        _conversation(QUESTION, _calling("x"), _result(path, "x"))


def test_tools_are_left_out_where_the_model_must_not_call() -> None:
    request = _request(tools=list(TOOLS))
    assert request.may_call
    assert read_conversation(request, "x").tools == TOOLS
    request = _request(tools=list(TOOLS), tool_choice="none")
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
            _conversation({"role": "user", "content": [part]}, access=PUBLIC_URLS)


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
        _conversation({"role": "user", "content": [part]})


@pytest.mark.parametrize("role", ["user", "tool", "function", "assistant"])
@pytest.mark.parametrize("key", ["images", "image", "videos", "video"])
def test_media_beside_a_text_are_refused(role: str, key: str) -> None:
    with pytest.raises(RequestError, match=rf"messages\.0\.{key}: "):
        _conversation({"role": role, "content": "x", key: ["/etc/x.png"]}, access=PUBLIC_URLS)


@pytest.mark.parametrize(
    "text", ["<img>/etc/x.png</img>", "<image>/etc/x.png</image>", "<video>x.mp4</video>"]
)
def test_paths_in_texts_are_text(text: str) -> None:
    assert _conversation({"role": "user", "content": text})[0].parts == (TextPart(text),)


def test_urls_are_for_servers_that_allow_them() -> None:
    url = "https://example.com/x.png"
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    with pytest.raises(RequestError, match="started with --allow-urls"):
        _conversation(message)
    assert _conversation(message, access=PUBLIC_URLS)[0].parts == (ImagePart(url),)


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
        _conversation(*messages)
    assert error.value.param == "messages"


def test_sampling_is_that_of_the_request_and_else_the_servers() -> None:
    defaults = Sampling(max_new_tokens=50, temperature=0.5, stop=("x",), seed=3)
    assert read_sampling(_request(), defaults, 10, 100) == defaults
    request = _request(
        temperature=0, top_p=0.5, top_k=-1, repetition_penalty=1.1, stop="a", seed=-1, max_tokens=90
    )
    chosen = Sampling(90, 0, 0.5, 0, 1.1, ("a",), (1 << 64) - 1)
    assert read_sampling(request, defaults, 10, 100) == chosen
    request = _request(stop=["a", "b"], max_tokens=7, max_completion_tokens=8)
    assert read_sampling(request, defaults, 10, 100).stop == ("a", "b")
    assert read_sampling(request, defaults, 10, 100).max_new_tokens == 8
    # The server's own limit gives way to the model's.
    assert read_sampling(_request(), defaults, 99, 100).max_new_tokens == 1


@pytest.mark.parametrize(
    ("fields", "prompt", "message", "param"),
    [
        ({}, 100, "the prompt has 100 tokens; prompt and answer must fit into 100 positions", "messages"),
        ({"max_tokens": 91}, 10, "ask for 90 at most", "max_tokens"),
        ({"top_p": 0}, 10, "top_p must be over 0", None),
        ({"temperature": -0.1}, 10, "temperature must be from 0", None),
        ({"min_p": 2}, 10, "min_p must be from 0", None),
    ],
)
def test_sampling_that_cannot_be(fields: Any, prompt: int, message: str, param: str | None) -> None:
    with pytest.raises(RequestError, match=message) as error:
        read_sampling(_request(**fields), Sampling(), prompt, 100)
    assert error.value.param == param
    assert (error.value.code == "context_length_exceeded") == (param is not None)


SWITCHES: list[Callable[[bool], dict[str, Any]]] = [
    lambda on: {"enable_thinking": on},
    lambda on: {"think": on},
    lambda on: {"thinking_mode": "open" if on else "close"},
    lambda on: {"thinking": {"type": "enabled" if on else "disabled"}},
    lambda on: {"reasoning_effort": "medium" if on else "none"},
    lambda on: {"reasoning": {"enabled": on, "exclude": None}},
    lambda on: {"metadata": {"enable_thinking": on, "user": "x"}},
    lambda on: {"extra_body": {"chat_template_kwargs": {"enable_thinking": on}}},
    lambda on: {"chat_template_kwargs": {"enable_thinking": on, "add_generation_prompt": True}},
    lambda on: {"chat_template_kwargs": {"thinking": on}},
    lambda on: {"chat_template_kwargs": {"options": {"thinking_mode": "open" if on else "close"}}},
]


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize(
    ("name", "thinks"),
    [("ernie", False), ("ernie_vl", False), ("ernie_vl_thinking", True), ("ernie_thinking", True)],
)
def test_thinking_is_as_the_template_has_it(
    name: str, thinks: bool, switch: Callable[[bool], dict[str, Any]]
) -> None:
    _request(**switch(thinks)).thinking.check(TEMPLATES[name])
    with pytest.raises(
        RequestError, match=r"the model (always|never) thinks \(see serve --template\)"
    ) as error:
        _request(**switch(not thinks)).thinking.check(TEMPLATES[name])
    assert error.value.param is not None and str(error.value).startswith(error.value.param)


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {}},
        {"chat_template_kwargs": {"options": {}}},
        {"chat_template_kwargs": {"enable_thinking": None, "continue_final_message": False}},
        {"thinking_mode": "auto", "thinking": {"type": "auto"}, "reasoning_effort": "default"},
        {"reasoning": {}, "reasoning_max_tokens": -1},
    ],
)
def test_what_leaves_thinking_to_the_model(fields: dict[str, Any]) -> None:
    for template in TEMPLATES.values():
        _request(**fields).thinking.check(template)
        _request(**fields).thinking.check_limits(template, 1 << 20)


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_max_tokens": 8},
        {"thinking_budget": 8.0},
        {"thinking": {"type": "enabled", "budget_tokens": 8}},
        {"reasoning": {"max_tokens": 8}},
        {"metadata": {"reasoning_max_tokens": 8}},
    ],
)
def test_a_limit_of_reasoning_is_taken_where_it_is_never_reached(fields: dict[str, Any]) -> None:
    thinking = _request(**fields).thinking
    for tokens in (4, 8):
        thinking.check_limits(TEMPLATES["ernie_vl_thinking"], tokens)
    thinking.check_limits(TEMPLATES["ernie_vl"], 1000)  # which has no reasoning
    with pytest.raises(RequestError, match="one limit, of 9 tokens here, and 8 was sent") as error:
        thinking.check_limits(TEMPLATES["ernie_vl_thinking"], 9)
    assert error.value.param in (*fields, "reasoning_max_tokens")


def test_a_limit_of_the_answer_after_reasoning() -> None:
    thinking = _request(response_max_tokens=8).thinking
    for template in TEMPLATES.values():
        thinking.check_limits(template, 8)
        with pytest.raises(RequestError, match=r"response_max_tokens: .* or set max_tokens"):
            thinking.check_limits(template, 9)
