"""The HTTP server with a scripted model: routes, fields, order, streams, and clients that go away."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.sampling import Sampling
from tests.unit.generation.scripted import END, TOOLS
from tests.unit.serving.conftest import ASKED, HANGS, SEVEN, Served

CALL = '<tool_call>\n{"name": "time", "arguments": {"zone": "Asia"}}\n</tool_call>\n'


def test_reasoning_and_calls_reach_the_client(start: Callable[..., Served]) -> None:
    said = f"So it is.\n</think>\n\nLook:{CALL}{CALL}{END}"
    client = start("ernie_vl_thinking", answers=[said, said]).client()
    message: Any = client.chat.completions.create(**ASKED, tools=TOOLS).choices[0].message
    assert (message.content, message.reasoning_content) == ("Look:", "So it is.")
    with client.chat.completions.stream(**ASKED, tools=TOOLS) as events:
        streamed: Any = events.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    for found in (message, streamed.message):
        assert [json.loads(call.function.arguments) for call in found.tool_calls] == [{"zone": "Asia"}] * 2


@pytest.mark.parametrize("streamed", [False, True])
def test_control_tokens_do_not_reach_the_client(
    start: Callable[..., Served], vl: Path, streamed: bool
) -> None:
    text = Detokenizer.from_checkpoint(vl)
    names = ("<s>", "<unk>", "<mask:1>", "<|begin_of_sentence|>", "<|IMAGE_START|>", "<|IMAGE_PLACEHOLDER|>")
    control = [text._backend.token_to_id(name) for name in names]
    end = text._backend.token_to_id("<|end_of_sentence|>")
    words = [text._backend.encode(part, add_special_tokens=False).ids for part in ("One two", "😀", " six")]
    said = [id for part in words for token in part for id in (token, *control)]
    client = (served := start()).client()
    for last in ([2], [end, *words[0]], []):
        served.stream = lambda document, sampling, last=last: iter([*said, *last])  # type: ignore[misc]
        asked: Any = client.chat.completions.create(**ASKED, stream=streamed)
        pieces = [chunk.choices[0].delta.content or "" for chunk in asked] if streamed else []
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
        found = "".join(pieces) if streamed else asked.choices[0].message.content
        assert found == "One two😀 six"
        if not streamed:
            assert asked.choices[0].finish_reason == ("stop" if last else "length")


def test_what_is_asked_reaches_the_model(start: Callable[..., Served]) -> None:
    served, asked = start(), []

    def stream(document: Document, sampling: Sampling) -> Iterator[int]:
        asked.append((len(document), sampling))
        return iter([SEVEN, 2])

    served.stream = stream
    status, answer = served.completion({**ASKED, "temperature": 0.5, "stop": ["x"], "max_tokens": 9})
    (tokens, sampling) = asked[0]
    assert (status, answer["usage"]["prompt_tokens"]) == (200, tokens)
    assert answer["usage"]["completion_tokens"] == 2
    terminator = "<|end_of_sentence|>"
    assert sampling == Sampling(9, temperature=0.5, stop=("x", terminator), seed=0)
    # Where no seed is given, every answer is drawn anew.
    served.completion(ASKED)
    assert asked[1][1] == Sampling(50, stop=(terminator,), seed=1)
    assert "POST /v1/chat/completions 200" in served.lines.get() and "answer 2 tokens" in served.lines.get()


def test_a_client_of_fastdeploy_is_answered_where_its_fields_change_nothing(
    start: Callable[..., Served],
) -> None:
    served = start("ernie_vl_thinking", answers=[f"So.\n</think>\n\nseven{END}"])
    fields = {"chat_template_kwargs": {"options": {"thinking_mode": "open"}}, "reasoning_max_tokens": 50}
    status, answer = served.completion(
        {**ASKED, **fields, "min_p": 0.0, "stop": ""}
    )  # 50: as the answer's limit
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "seven")
    for wrong, message in (
        (
            {"reasoning_max_tokens": 8},
            "reasoning_max_tokens: reasoning and answer have one limit, of 50 tokens",
        ),
        (
            {"thinking_mode": "close"},
            "thinking_mode: with template ernie_vl_thinking the model always thinks",
        ),
    ):
        status, answer = served.completion({**ASKED, **wrong})
        assert (status, answer["error"]["param"]) == (400, next(iter(wrong)))
        assert answer["error"]["message"].startswith(message)


def test_ignored_keys_are_in_the_log(start: Callable[..., Served]) -> None:
    served = start(answers=[f"seven{END}"])
    asked = {**ASKED, "messages": [{"role": "user", "content": "Which digit?", "mood": "good"}]}
    assert served.completion(asked)[0] == 200
    assert served.lines.get(timeout=HANGS).endswith("; key 'mood' of a message is not read")


def test_routes_and_methods(start: Callable[..., Served]) -> None:
    served = start()
    assert served.ask("GET", "/health")[:2] == (200, {"status": "ok"})
    assert served.ask("HEAD", "/health")[:2] == (200, None)
    status, models, _ = served.ask("GET", "/v1/models?limit=1")
    assert (status, [card["id"] for card in models["data"]]) == (200, ["tiny"])
    for method, path, wanted in (
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/models/tiny", "GET or HEAD"),
        ("POST", "/health", "GET or HEAD"),
        ("BREW", "/health", "GET or HEAD"),
    ):
        status, answer, response = served.ask(method, path, b"{}" if method == "POST" else None)
        assert (status, set(response.headers["Allow"].split(", "))) == (405, set(wanted.split(" or ")))
        assert answer["error"]["message"] == f"{path} takes {wanted}, not {method}"
    status, answer, _ = served.ask("POST", "/v1/completions", {})
    assert status == 404 and "there is nothing at /v1/completions" in answer["error"]["message"]
    status, answer, _ = served.ask("GET", "/v1/models/gpt")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_text_is_bounded_before_it_is_tokenized(
    start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start()
    monkeypatch.setattr(Encoder, "encode_prompt", lambda *_: pytest.fail("it was tokenized"))
    text = "x" * 16 * served.service._positions
    for asked in (
        {**ASKED, "messages": [{"role": "user", "content": text}]},
        {**ASKED, "tools": [{"type": "function", "function": {"name": "x", "description": text}}]},
        {**ASKED, "messages": [{"role": "user", "content": [{"type": "image_url"}] * len(text)}]},
    ):
        status, answer = served.completion(asked)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert "prompt and answer must fit into" in answer["error"]["message"]


def test_requests_are_answered_in_their_order(start: Callable[..., Served]) -> None:
    served, begun, go = start(), queue.Queue[int](), threading.Event()

    def stream(document: Document, sampling: Sampling) -> Iterator[int]:
        begun.put(sampling.max_new_tokens)
        go.wait(HANGS)
        yield 2

    served.stream = stream
    threads = []
    for number in (11, 12, 13, 14):
        threads.append(
            threading.Thread(target=served.completion, args=({**ASKED, "max_tokens": number},), daemon=True)
        )
        threads[-1].start()
        if number == 11:
            assert begun.get(timeout=HANGS) == 11
        while served.service._queue.qsize() < number - 11:
            time.sleep(0.01)
    # Others wait, but requests that need no model are answered, and errors are reported.
    assert served.ask("GET", "/health")[0] == 200
    assert served.completion({**ASKED, "n": 2})[0] == 400
    assert begun.empty()
    go.set()
    assert [begun.get(timeout=HANGS) for _ in range(3)] == [12, 13, 14]
    for thread in threads:
        thread.join(HANGS)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_ends_its_answer(start: Callable[..., Served], streamed: bool) -> None:
    served, begun, ended = start(), threading.Event(), threading.Event()

    def endless(document: Document, sampling: Sampling) -> Iterator[int]:
        try:
            while True:
                begun.set()
                time.sleep(0.01)
                yield SEVEN
        finally:
            ended.set()

    served.stream = endless
    body = json.dumps({**ASKED, "stream": streamed}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"
    with socket.create_connection((served.host, served.port), timeout=HANGS) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        if streamed:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert begun.wait(HANGS) and not ended.is_set()
    assert ended.wait(HANGS)
    assert "the client disconnected" in served.lines.get(timeout=HANGS)
    served.stream = lambda document, sampling: iter([2])
    assert served.completion(ASKED)[0] == 200


def test_a_client_that_goes_away_while_it_waits_is_never_answered(start: Callable[..., Served]) -> None:
    served, asked, go = start(), [], threading.Event()

    def stream(document: Document, sampling: Sampling) -> Iterator[int]:
        asked.append(sampling.max_new_tokens)
        go.wait(HANGS)
        yield 2

    served.stream = stream
    first = threading.Thread(target=served.completion, args=(ASKED,), daemon=True)
    first.start()
    while not asked:
        time.sleep(0.01)
    with pytest.raises(openai.APITimeoutError):
        served.client().with_options(timeout=0.3).chat.completions.create(**ASKED, max_tokens=7)
    assert "the client disconnected" in served.lines.get(timeout=HANGS)
    go.set()
    first.join(HANGS)
    assert served.completion(ASKED)[0] == 200 and asked == [50, 50]


@pytest.mark.parametrize("after", [0, 1])
def test_after_a_failed_answer_the_next_one_is_given(
    start: Callable[..., Served], after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    served = start()

    def broken(document: Document, sampling: Sampling) -> Iterator[int]:
        yield from [SEVEN] * after
        raise MemoryError("too large")

    served.stream = broken
    status, answer = served.completion(ASKED)
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert answer["error"]["message"] == "the answer failed: MemoryError: too large"
    with pytest.raises(openai.APIError, match="the answer failed"):
        list(served.client().chat.completions.create(**ASKED, stream=True))
    connection = http.client.HTTPConnection(served.host, served.port, timeout=HANGS)
    body = json.dumps({**ASKED, "stream": True})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    received = connection.getresponse().read()  # ends, but not as a whole answer does
    assert b"the answer failed" in received and b"[DONE]" not in received
    assert "MemoryError" in capsys.readouterr().err
    served.stream = lambda document, sampling: iter([2])
    assert served.completion(ASKED)[0] == 200


def test_an_image_that_cannot_be_read(start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = start()
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eHh4"}}
    status, answer = served.completion({**ASKED, "messages": [{"role": "user", "content": [part]}]})
    assert status == 400 and "not an image that can be read" in answer["error"]["message"]
