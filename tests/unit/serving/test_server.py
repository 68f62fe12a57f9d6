"""The HTTP server with a scripted model: routes, order, keys, bodies, streams, disconnects, signals."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.errors import ConfigError
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.generate import Generator
from erniekit.generation.load import find_model
from erniekit.generation.sampling import Sampling
from erniekit.models.ernie import ErnieModel
from erniekit.serving import app as serve
from erniekit.serving.access import access_notes, read_key
from erniekit.serving.app import make_app
from erniekit.serving.connections import BoundedConnection
from erniekit.serving.cors import parse_origins
from erniekit.serving.fields import RequestError
from erniekit.serving.request import read_request
from erniekit.serving.server import curl_command, listen, listens_locally, run_server, server_url
from erniekit.serving.service import ChatService, Event
from tests.unit.generation.scripted import END, TOOLS
from tests.unit.serving.conftest import ASKED, HANGS, Served


def submit(service: ChatService, on_event: Callable[[Event], None]) -> None:
    request = read_request(json.dumps(ASKED).encode())
    service.submit(request, service.read(request), on_event)


CALL = '<tool_call>\n{"name": "time", "arguments": {"zone": "Asia"}}\n</tool_call>\n'
SEVEN = 60  # a token of text


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


def test_a_key(start: Callable[..., Served]) -> None:
    served = start(api_key="secret", answers=[f"seven{END}"])
    for given in (None, "Bearer other", "Bearer \xe9", "secret", "Basic secret", "Bearer", "Bearersecret"):
        headers = {} if given is None else {"Authorization": given}
        status, answer, response = served.ask("GET", "/v1/models", headers=headers)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert served.ask("GET", "/health")[0] == 200
    assert served.client().chat.completions.create(**ASKED).choices[0].message.content == "seven"
    assert "Authorization: Bearer KEY" in curl_command(served.url, "tiny", "secret")


def test_bodies_that_are_not_accepted(start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAX_BODY_BYTES", 1000)
    served = start()
    with pytest.raises(openai.APIStatusError, match=r"more than 1,000 bytes") as error:
        question: Any = [{"role": "user", "content": "x" * 5_000_000}]
        served.client().chat.completions.create(model="tiny", messages=question)
    assert error.value.status_code == 413
    assert served.completion(b"x" * 30_000_000)[0] == 413
    status, answer = served.completion(ASKED, **{"Content-Type": "text/plain"})
    assert status == 415 and "application/json" in answer["error"]["message"]
    status, answer = served.completion(None)
    assert status == 400 and "not valid JSON" in answer["error"]["message"]


@pytest.mark.parametrize(("spare", "status"), [(0, 200), (-1, 413)])
def test_bodies_in_chunks(
    start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, spare: int, status: int
) -> None:
    body = json.dumps(ASKED).encode()
    monkeypatch.setattr(serve, "MAX_BODY_BYTES", len(body) + spare)
    served = start()
    connection = http.client.HTTPConnection(served.host, served.port, timeout=HANGS)
    pieces = iter([body[:20], body[20:]])
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", pieces, headers, encode_chunked=True)
    assert connection.getresponse().status == status
    connection.close()


def test_bodies_of_all_requests_together(
    start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_HELD_BYTES", len(json.dumps(ASKED)) * 3 // 2)
    served, begun, go = start(), threading.Event(), threading.Event()

    def stream(document: Document, sampling: Sampling) -> Iterator[int]:
        begun.set()
        go.wait(HANGS)
        yield 2

    served.stream = stream
    first = threading.Thread(target=served.completion, args=(ASKED,), daemon=True)
    first.start()
    assert begun.wait(HANGS)
    status, answer = served.completion(ASKED)
    assert status == 503 and "too many large requests" in answer["error"]["message"]
    go.set()
    first.join(HANGS)
    assert served.completion(ASKED)[0] == 200


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


def test_a_body_is_never_the_next_request(start: Callable[..., Served]) -> None:
    served = start()
    for length in ("-1", "x", "9" * 5000):
        connection = http.client.HTTPConnection(served.host, served.port, timeout=HANGS)
        connection.request("POST", "/v1/chat/completions", b"{}", {"Content-Length": length})
        response = connection.getresponse()
        assert (response.status, response.headers["Connection"]) == (400, "close")
        connection.close()
    connection = http.client.HTTPConnection(served.host, served.port, timeout=HANGS)
    for path, found in (
        ("/health", {"status": "ok"}),
        ("/v1/models/gpt", None),
        ("/health", {"status": "ok"}),
    ):
        connection.request("GET", path, b"GET /v1/models HTTP/1.1\r\n\r\n")
        response = connection.getresponse()
        content = json.loads(response.read())
        assert (response.status, content) == (200, found) if found else response.status == 404
    connection.close()


def test_a_connection_is_used_again(start: Callable[..., Served]) -> None:
    served = start(answers=[f"one{END}", f"two{END}"])
    connection = http.client.HTTPConnection(served.host, served.port, timeout=HANGS)
    found = []
    for body in ({**ASKED, "stream": True}, {**ASKED, "n": 2}, ASKED):
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        found.append(connection.getresponse())
        content = found[-1].read()
    assert [response.status for response in found] == [200, 400, 200]
    assert not any(response.will_close for response in found)
    assert json.loads(content)["choices"][0]["message"]["content"] == "two"


def test_an_old_client_gets_a_stream_without_chunks(start: Callable[..., Served]) -> None:
    served = start(answers=[f"one{END}"])
    body = json.dumps({**ASKED, "stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    with socket.create_connection((served.host, served.port), timeout=HANGS) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    answer = received.partition(b"\r\n\r\n")[2]
    assert answer.startswith(b"data: {") and answer.endswith(b"data: [DONE]\n\n")


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


def test_where_it_cannot_listen() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1, port 8000"):
        listen("192.0.2.1", 8000)
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1, port 99999"):
        listen("127.0.0.1", 99999)


def test_the_url_for_clients() -> None:
    for host, shown in (("::1", "[::1]"), ("0.0.0.0", "127.0.0.1")):
        with listen(host, 0) as listener:
            assert server_url(listener) == f"http://{shown}:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "key", "origin", "note"),
    [
        (
            "0.0.0.0",
            "",
            "",
            "it listens on all addresses of this machine without a key: anyone who can reach it",
        ),
        ("::", "", "", "it listens on all addresses of this machine without a key"),
        ("192.0.2.1", "", "", "it listens on 192.0.2.1 without a key"),
        ("0.0.0.0", "secret", "", ""),
        ("::1", "", "", ""),
        ("127.0.0.1", "", "*", "with --cors '*' any web page in a browser here can use this server"),
        ("127.0.0.1", "secret", "*", ""),
        ("127.0.0.1", "", "http://localhost:3000", ""),
    ],
)
def test_who_can_use_an_open_server(host: str, key: str, origin: str, note: str) -> None:
    notes = access_notes(host, key, parse_origins([origin] if origin else []), on_command_line=False)
    assert len(notes) == bool(note) and all(found.startswith(note) for found in notes)
    assert all("ERNIEKIT_API_KEY or --api-key-file sets a key" in found for found in notes)


def test_a_key_that_everybody_sees() -> None:
    (note,) = access_notes("0.0.0.0", "secret", (), on_command_line=True)
    assert "list of processes" in note and "secret" not in note


def test_keys_in_files(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    assert read_key("", file) == "secret" == read_key("secret", None) and read_key("", None) == ""
    for content, message in (("\n", "is empty"), ("two words", "printable ASCII"), ("schlüssel", "ASCII")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            read_key("", file)
    for given, named in (("secret", file), ("", tmp_path / "none"), ("", tmp_path)):
        with pytest.raises(ConfigError, match=r"not both|cannot be read"):
            read_key(given, named)


def test_a_server_without_a_key_answers_only_to_its_own_names(start: Callable[..., Served]) -> None:
    served = start(local_only=True, answers=[f"seven{END}"])
    for host in (
        "localhost",
        f"LOCALHOST:{served.port}",
        "127.0.0.1",
        "127.8.9.1:80",
        "[::1]:8000",
        "localhost.",
    ):
        assert served.ask("GET", "/health", headers={"Host": host})[0] == 200
    for host in (
        "page.example",
        f"page.example:{served.port}",
        "127.0.0.1.page.example",
        "[",
        "0.0.0.0",
        "localhost@x",
    ):
        status, answer, _ = served.ask("GET", "/v1/models", headers={"Host": host})
        assert status == 403 and "answers only requests to localhost" in answer["error"]["message"]
    assert served.client().chat.completions.create(**ASKED).choices[0].message.content == "seven"


def test_who_listens_locally() -> None:
    for host, local in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        with listen(host, 0) as listener:
            assert listens_locally(listener) == local


@pytest.mark.parametrize(
    "target", ["http://[/health", "http://here/health", "//[/", "/%00", "/v1/models/%ff", "*"]
)
def test_targets_that_are_no_path(start: Callable[..., Served], target: str) -> None:
    served = start()
    with socket.create_connection((served.host, served.port), timeout=HANGS) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n".encode())
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 404") and b"error" in received


def received_of(served: Served, sent: bytes) -> bytes:
    with socket.create_connection((served.host, served.port), timeout=HANGS) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET /health", b"HTTP/1.1 408 "),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: ", b"HTTP/1.1 408 "),
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 9\r\n\r\n{",
            b"HTTP/1.1 408 ",
        ),
    ],
)
def test_a_client_that_does_not_end_its_request(
    start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, sent: bytes, answer: bytes
) -> None:
    monkeypatch.setattr(BoundedConnection, "head_seconds", 0.2)
    monkeypatch.setattr(BoundedConnection, "body_seconds", 0.2)
    assert received_of(start(), sent).startswith(answer)


def test_a_byte_now_and_then_does_not_keep_a_connection(
    start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedConnection, "head_seconds", 0.2)
    served = start()
    with socket.create_connection((served.host, served.port), timeout=HANGS) as connection:
        connection.settimeout(0.01)
        for byte in b"GET /" + b"x" * 15_000:
            with suppress(TimeoutError):
                if connection.recv(100).startswith(b"HTTP/1.1 408 "):
                    return
            connection.sendall(bytes([byte]))
    pytest.fail("the connection was kept")


def test_connections_are_limited(start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "max_connections", 2)
    served = start()
    with ExitStack() as stack:
        for _ in range(2):
            idle = stack.enter_context(socket.create_connection((served.host, served.port), timeout=HANGS))
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(100).startswith(b"HTTP/1.1 200")
        assert received_of(served, b"").startswith(b"HTTP/1.1 503 ")
    while served.ask("GET", "/health")[0] != 200:
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_it_in_the_middle_of_an_answer(
    vl: Path, model: ErnieModel, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, times: int
) -> None:
    lines: list[str] = []
    text = Detokenizer.from_checkpoint(vl)
    service = ChatService("tiny", model, find_model(vl).encoder(), text, Sampling())
    listener, events = listen("127.0.0.1", 0), list[Event]()
    address = listener.getsockname()

    def stream(generator: Generator, document: Document, sampling: Sampling) -> Iterator[int]:
        for _ in range(times):
            os.kill(os.getpid(), number)
        if times == 1:
            yield SEVEN
        pytest.fail("the signal was lost")

    monkeypatch.setattr(Generator, "stream", stream)
    for _ in range(2):
        submit(service, events.append)
    before = signal.getsignal(number)
    run_server(listener, make_app(service, log=lines.append), service, lines.append)
    assert lines == ["stopped"] and signal.getsignal(number) == before
    with pytest.raises(OSError):
        socket.create_connection(address, timeout=HANGS)
    submit(service, events.append)
    assert [event.status for event in events if isinstance(event, RequestError)] == [503, 503, 503]


def test_a_signal_that_another_thread_receives_ends_the_wait_for_requests(
    vl: Path, model: ErnieModel
) -> None:
    """Such a signal, as one just before the wait begins, does not end a wait in C."""
    lines: list[str] = []
    text = Detokenizer.from_checkpoint(vl)
    service = ChatService("tiny", model, find_model(vl).encoder(), text, Sampling())

    def stop() -> None:
        time.sleep(0.2)  # when the wait has begun; before it, the signal ends it anyway
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    run_server(listen("127.0.0.1", 0), make_app(service, log=lines.append), service, lines.append)
    assert lines == ["stopped"]


@pytest.mark.parametrize("streamed", [True, False])
def test_clients_of_a_server_that_stops_get_an_error(start: Callable[..., Served], streamed: bool) -> None:
    served, found = start(), queue.SimpleQueue[tuple[int, bytes]]()

    def stream(document: Document, sampling: Sampling) -> Iterator[int]:
        yield SEVEN
        served.service.stop()
        yield SEVEN

    def ask() -> None:
        connection = http.client.HTTPConnection(served.host, served.port, timeout=HANGS)
        body, headers = json.dumps({**ASKED, "stream": streamed}), {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        found.put((response.status, response.read()))

    served.stream = stream
    threading.Thread(target=ask, daemon=True).start()
    status, content = found.get(timeout=HANGS)
    assert status == (200 if streamed else 503)
    assert b"the server is shutting down" in content and b"[DONE]" not in content
