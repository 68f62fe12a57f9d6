"""Connections of the server: bodies, slow clients, limits, and the end of the server."""

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
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.generate import Generator
from erniekit.generation.load import find_model
from erniekit.generation.sampling import Sampling
from erniekit.models.ernie import ErnieModel
from erniekit.serving import app as serve
from erniekit.serving.app import make_app
from erniekit.serving.connections import BoundedConnection
from erniekit.serving.fields import RequestError
from erniekit.serving.request import read_request
from erniekit.serving.server import listen, run_server
from erniekit.serving.service import ChatService, Event
from tests.unit.generation.scripted import END
from tests.unit.serving.conftest import ASKED, HANGS, SEVEN, Served


def submit(service: ChatService, on_event: Callable[[Event], None]) -> None:
    request = read_request(json.dumps(ASKED).encode())
    service.submit(request, service.read(request), on_event)


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
