"""`erniekit serve` as a user runs it, asked by OpenAI's own Python client."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.command import erniekit
from tests.integration.training_setup import TIME_QUESTION, TIME_TOOL, TRAINED_STEPS, chats

ERNIEKIT = Path(sys.executable).with_name("erniekit")
PAGE = "http://localhost:3000"


def _start(*arguments: str | Path) -> tuple[subprocess.Popen[str], str, list[str]]:
    """A server on a free port, its address, and what it has said."""
    command = [ERNIEKIT, "serve", *arguments, "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    said = []
    for line in process.stdout:
        said.append(line.rstrip("\n"))
        found = re.match(r"listening on (http://\S+)/v1", line)
        if found is not None:
            return process, found[1], said
    raise AssertionError(f"{said} {process.stderr.read()}")


@pytest.fixture(scope="module")
def server(trained_run: Path) -> Iterator[tuple[str, list[str]]]:
    process, url, said = _start(trained_run, "--name", "colours", "--cors", "http://other", "--cors", PAGE)
    try:
        yield url, said
        process.send_signal(signal.SIGTERM)  # Ctrl-C: see test_documents
        _, errors = process.communicate()
        assert process.returncode == 0 and "Traceback" not in errors
        assert errors.splitlines()[-1] == "stopped"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def client(server: tuple[str, list[str]]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)


def _question(index: int) -> tuple[list[Any], str]:
    question, answer = chats(8)[index]["messages"]
    return [question], answer["content"]


def test_it_answers_in_text_and_to_images(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["colours"]
    assert client.models.retrieve("colours").owned_by == "erniekit"
    for index in (0, 1, 2):
        messages, answer = _question(index)
        nothing = {"min_p": 0.0, "min_tokens": 0, "skip_special_tokens": True, "stop_token_ids": []}
        found = client.chat.completions.create(
            model="colours", messages=messages, user="me", store=False, n=1, stop=[], extra_body=nothing
        )
        (choice,) = found.choices
        assert (choice.message.content, choice.finish_reason) == (answer, "stop")
        assert choice.message.tool_calls is None and found.object == "chat.completion"
        assert found.usage is not None and found.model == "colours"
        assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert any(not isinstance(_question(index)[0][0]["content"], str) for index in (0, 1, 2))


def test_it_streams(client: openai.OpenAI) -> None:
    messages, answer = _question(1)
    whole = client.chat.completions.create(model="colours", messages=messages)
    stream = client.chat.completions.create(
        model="colours", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == answer
    assert len(chunks) > 4 and chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert len({chunk.id for chunk in chunks}) == 1
    with client.chat.completions.stream(model="colours", messages=messages) as events:
        assert events.get_final_completion().choices[0].message.content == answer


@pytest.mark.parametrize("streamed", [False, True])
def test_it_calls_tools_and_reads_their_results(client: openai.OpenAI, streamed: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": TIME_QUESTION}]
    asked: dict[str, Any] = {"model": "colours", "messages": messages, "tools": [TIME_TOOL]}
    if streamed:
        with client.chat.completions.stream(**asked, tool_choice="auto") as events:
            choice: Any = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**asked, parallel_tool_calls=True).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "time")
    assert json.loads(call.function.arguments) == {"city": "Rome"} and call.id.startswith("call_")
    # What the client got, it sends back.
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "12:00"}]
    found = client.chat.completions.create(**asked).choices[0]
    assert (found.message.content, found.finish_reason) == ("It is noon.", "stop")


def test_limits_and_sampling(client: openai.OpenAI) -> None:
    messages, answer = _question(0)
    cut = client.chat.completions.create(model="colours", messages=messages, max_tokens=2)
    assert cut.choices[0].finish_reason == "length" and cut.usage is not None
    assert cut.usage.completion_tokens == 2 and answer.startswith(cut.choices[0].message.content or "?")
    stopped = client.chat.completions.create(model="colours", messages=messages, stop=[" is"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("It", "stop")
    wild: Any = {"model": "colours", "messages": messages, "temperature": 3.0, "max_completion_tokens": 12}
    drawn = [
        client.chat.completions.create(**wild, seed=seed, extra_body={"top_k": 200})
        .choices[0]
        .message.content
        for seed in (-1, -1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("wrong", "message", "param"),
    [
        ({"temperature": -1.0}, "temperature must be from 0 (greedy) to 10,000", None),
        ({"n": 2}, "n: a request has one answer", "n"),
        (
            {"logprobs": True},
            "logprobs: is not supported; true was sent, leave it out or send false",
            "logprobs",
        ),
        ({"extra_body": {"min_tokens": 5}}, "min_tokens: is not supported", "min_tokens"),
        (
            {"tools": [TIME_TOOL], "tool_choice": "required"},
            'tool_choice: must be "auto" or "none"',
            "tool_choice",
        ),
        ({"max_tokens": 1 << 20}, "positions for both", "max_tokens"),
        ({"messages": [{"role": "user", "content": "x" * 40_000}]}, "must fit into", "messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "unknown role 'boss'", "messages"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_reported(
    client: openai.OpenAI, wrong: dict[str, Any], message: str, param: Any
) -> None:
    asked: dict[str, Any] = {"model": "colours", "messages": _question(0)[0], **wrong}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**asked)
    assert message in str(error.value) and error.value.param == param


@pytest.mark.parametrize("url", ["https://example.com/x.png", "file:///etc/hosts", "README.md"])
def test_images_come_with_the_request(client: openai.OpenAI, url: str) -> None:
    content: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    with pytest.raises(openai.BadRequestError, match="as a data: URI"):
        client.chat.completions.create(model="colours", messages=[{"role": "user", "content": content}])


def test_another_model_and_path(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.chat.completions.create(model="gpt", messages=_question(0)[0])
    with pytest.raises(openai.NotFoundError, match="there is nothing at /v1/embeddings"):
        client.embeddings.create(model="colours", input="x")


def test_it_tells_what_it_serves_and_how_engines_do(server: tuple[str, list[str]], trained_run: Path) -> None:
    url, said = server
    assert said[0].endswith(f'checkpoint-{TRAINED_STEPS:06d} as "colours": template ernie_vl')
    export = said.index(f"  erniekit export {trained_run} --output {trained_run}-export")
    assert said[export + 1].startswith(f"  vllm serve {trained_run}-export --trust-remote-code")
    asked = subprocess.run(said[2], shell=True, capture_output=True, text=True, check=True)
    assert said[2].startswith(f"  curl {url}/v1/chat/completions ") and json.loads(asked.stdout)["usage"]
    printed = erniekit("serve", trained_run, "--commands")
    assert printed.returncode == 0 and printed.stdout.splitlines() == said[3:-1]


def test_a_chat_in_a_browser(server: tuple[str, list[str]]) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    for method, headers, status in (("OPTIONS", asked, 200), ("POST", {"Origin": PAGE}, 415)):
        connection = http.client.HTTPConnection(server[0].removeprefix("http://"), timeout=600)
        connection.request(method, "/v1/chat/completions", headers=headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (status, PAGE)


def test_what_is_no_origin(trained_run: Path) -> None:
    result = erniekit("serve", trained_run, "--cors", "localhost:3000")
    assert result.returncode == 1 and "error: --cors localhost:3000: is not an origin" in result.stderr


def test_a_port_that_is_taken(trained_run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = erniekit("serve", trained_run, "--port", port)
    assert (result.returncode, result.stdout) == (1, "")
    message = f"error: cannot listen on 127.0.0.1, port {port}: Address already in use; choose others with"
    assert result.stderr.startswith(message)
