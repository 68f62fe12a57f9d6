"""Fields of a request: which are read, ignored or refused, and the sampling and thinking that they ask for."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from erniekit.data.chat.families import TEMPLATES
from erniekit.generation.sampling import Sampling
from erniekit.serving.fields import IGNORED, NEUTRAL, RequestError
from erniekit.serving.request import ChatRequest, read_request, read_sampling
from erniekit.serving.thinking import THINKING_FIELDS
from tests.unit.serving.requests import refusal_of, request_of


def test_what_changes_no_answer_is_passed_over() -> None:
    plain = request_of()
    assert plain == request_of(
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
    assert request_of(**{name: None}) == request_of()


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (values, _) in NEUTRAL.items() for value in values]
)
def test_every_neutral_value_asks_for_nothing(name: str, value: Any) -> None:
    assert request_of(**{name: value}) == request_of()


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_any_other_value_is_refused_with_its_name_and_what_was_sent(name: str) -> None:
    error = refusal_of(**{name: "sesame"})
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
    request = request_of(**fields)
    defaults = Sampling(50, 0.5, stop=("x",), seed=(1 << 64) - 1)
    assert read_sampling(request, defaults, 10, 100) == defaults
    assert not request.may_call


def test_packed_fields_are_fields() -> None:
    assert request_of(extra_body={"min_p": 0.1, "stop": "x"}) == request_of(min_p=0.1, stop="x")
    assert str(refusal_of(extra_body={"min_q": 0.1})).startswith("min_q: this server does not know")
    assert str(refusal_of(min_p=0.2, extra_body={"min_p": 0.1})).startswith(
        "min_p: is sent twice, also as 0.2"
    )
    assert request_of(min_p=0.1, extra_body={"min_p": 0.1}).min_p == 0.1
    # What FastDeploy takes from metadata; labels, which are texts, stay labels.
    assert request_of(metadata={"top_k": 3, "temperature": "0.5", "run": 7}) == request_of(top_k=3)
    assert str(refusal_of(metadata={"min_tokens": 3})).startswith("min_tokens: is not supported")


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
    error = refusal_of(**{name: value})
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
        cause = refusal_of(**fields).__cause__
        assert cause is None or (isinstance(cause, ValidationError) and cause.error_count() <= 2)


def test_an_endless_name_is_compared_with_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(difflib, "get_close_matches", lambda name, *_, **__: compared.append(name) or [])
    assert str(refusal_of(**{"y" * 100_000: 1})).startswith("yyy")
    assert [len(name) for name in compared] == [60]


def test_stop_texts_are_bounded() -> None:
    """Each token of the answer is compared with each of them."""
    for stop in (["x"] * 65, "x" * 10_001, ["x" * 5_000] * 3):
        with pytest.raises(RequestError, match="stop: at most 64 texts, of 10,000 characters together"):
            read_sampling(request_of(stop=stop), Sampling(), 10, 100)
    assert len(read_sampling(request_of(stop=["x", ""] * 64), Sampling(), 10, 100).stop) == 64


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


def test_sampling_is_that_of_the_request_and_else_the_servers() -> None:
    defaults = Sampling(max_new_tokens=50, temperature=0.5, stop=("x",), seed=3)
    assert read_sampling(request_of(), defaults, 10, 100) == defaults
    request = request_of(
        temperature=0, top_p=0.5, top_k=-1, repetition_penalty=1.1, stop="a", seed=-1, max_tokens=90
    )
    chosen = Sampling(90, 0, 0.5, 0, 1.1, ("a",), (1 << 64) - 1)
    assert read_sampling(request, defaults, 10, 100) == chosen
    request = request_of(stop=["a", "b"], max_tokens=7, max_completion_tokens=8)
    assert read_sampling(request, defaults, 10, 100).stop == ("a", "b")
    assert read_sampling(request, defaults, 10, 100).max_new_tokens == 8
    # The server's own limit gives way to the model's.
    assert read_sampling(request_of(), defaults, 99, 100).max_new_tokens == 1


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
        read_sampling(request_of(**fields), Sampling(), prompt, 100)
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
    request_of(**switch(thinks)).thinking.check(TEMPLATES[name])
    with pytest.raises(
        RequestError, match=r"the model (always|never) thinks \(see serve --template\)"
    ) as error:
        request_of(**switch(not thinks)).thinking.check(TEMPLATES[name])
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
        request_of(**fields).thinking.check(template)
        request_of(**fields).thinking.check_limits(template, 1 << 20)


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
    thinking = request_of(**fields).thinking
    for tokens in (4, 8):
        thinking.check_limits(TEMPLATES["ernie_vl_thinking"], tokens)
    thinking.check_limits(TEMPLATES["ernie_vl"], 1000)  # which has no reasoning
    with pytest.raises(RequestError, match="one limit, of 9 tokens here, and 8 was sent") as error:
        thinking.check_limits(TEMPLATES["ernie_vl_thinking"], 9)
    assert error.value.param in (*fields, "reasoning_max_tokens")


def test_a_limit_of_the_answer_after_reasoning() -> None:
    thinking = request_of(response_max_tokens=8).thinking
    for template in TEMPLATES.values():
        thinking.check_limits(template, 8)
        with pytest.raises(RequestError, match=r"response_max_tokens: .* or set max_tokens"):
            thinking.check_limits(template, 9)
