"""A server whose model says what a test wants, for the tests of `serve`."""

from __future__ import annotations

import http.client
import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from erniekit.checkpoint.weights import load_model
from erniekit.data.encode.document import Document
from erniekit.data.media.access import NO_URLS, MediaAccess
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.generate import Generator
from erniekit.generation.load import find_model
from erniekit.generation.sampling import Sampling
from erniekit.models.ernie import ErnieModel
from erniekit.serving.app import make_app
from erniekit.serving.cors import parse_origins
from erniekit.serving.server import http_server, listen, server_url
from erniekit.serving.service import ChatService
from tests.unit.generation.helpers import make_model
from tests.unit.generation.scripted import Script

HANGS = 600  # seconds: whatever takes so long, on a machine however busy
ASKED: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which digit?"}]}
SEVEN = 60  # a token of text
Stream = Callable[[Document, Sampling], Iterator[int]]


@pytest.fixture(scope="module")
def vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("serve") / "model", "vl")


@pytest.fixture(scope="module")
def model(vl: Path) -> ErnieModel:
    return load_model(vl)


class Served:
    """A server whose answers come from `stream`, set by the test."""

    def __init__(
        self,
        vl: Path,
        model: ErnieModel,
        monkeypatch: pytest.MonkeyPatch,
        template: str,
        api_key: str,
        cors: tuple[str, ...],
        local_only: bool,
        access: MediaAccess,
    ) -> None:
        self.stream: Stream = lambda document, sampling: iter([2])
        monkeypatch.setattr(
            Generator, "stream", lambda generator, document, sampling: self.stream(document, sampling)
        )
        self.lines: queue.Queue[str] = queue.Queue()
        text = Detokenizer.from_checkpoint(vl)
        self.service = ChatService(
            "tiny", model, find_model(vl).encoder(template), text, Sampling(50), access=access
        )
        origins, log = parse_origins(cors), self.lines.put
        listener = listen("127.0.0.1", 0)
        self.url = server_url(listener)
        self.host, self.port = listener.getsockname()
        app = make_app(self.service, api_key=api_key, local_only=local_only, cors_origins=origins, log=log)
        self._running = ExitStack()
        self._running.enter_context(http_server(listener, app))
        threading.Thread(target=self.service.run, daemon=True).start()

    def close(self) -> None:
        self.service.stop()
        self._running.close()

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=HANGS)
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, sent, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, json.loads(content) if content else None, response

    def preflight(self, path: str, headers: dict[str, str]) -> tuple[int, http.client.HTTPResponse]:
        """What a browser asks before a page's request."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=HANGS)
        connection.request("OPTIONS", path, headers=headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status, response

    def completion(self, body: Any, **headers: str) -> tuple[int, Any]:
        return self.ask("POST", "/v1/chat/completions", body, headers)[:2]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="secret", max_retries=0, timeout=HANGS)


@pytest.fixture
def start(vl: Path, model: ErnieModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(
        template: str = "ernie_vl",
        api_key: str = "",
        answers: list[str] | None = None,
        cors: tuple[str, ...] = (),
        local_only: bool = False,
        access: MediaAccess = NO_URLS,
    ) -> Served:
        served = Served(vl, model, monkeypatch, template, api_key, cors, local_only, access)
        started.append(served)
        if answers is not None:
            served.stream = Script(vl, model, template, answers).stream
        return served

    yield start
    for served in started:
        served.close()
