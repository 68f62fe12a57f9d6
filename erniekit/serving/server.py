"""HTTP for `erniekit serve`: routes, bodies, keys, streams, and clients that go away.

The standard library's server is enough: a thread for each connection, which waits while the model, of which there is
one, answers in the order of the requests (`ChatService`). So nothing has to be installed to try a model out.
"""

from __future__ import annotations

import hmac
import http.client
import http.server
import ipaddress
import json
import queue
import select
import shlex
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

from erniekit.errors import ConfigError
from erniekit.generation.answer import Delta
from erniekit.interrupt import InterruptGuard
from erniekit.serving.cors import ANY_ORIGIN, CrossOrigin
from erniekit.serving.fields import RequestError
from erniekit.serving.request import read_request
from erniekit.serving.response import (
    STREAM_END,
    Completion,
    Finished,
    error_body,
    event,
    model_card,
    to_json,
)
from erniekit.serving.service import ChatService, Job
from erniekit.terminal import printable

MAX_BODY = 64 << 20  # bytes: a few large pictures
# How often a client that waits for its turn is looked after.
_LOOK_SECONDS = 0.5
# How long, and how much of, a body that is refused is still taken in: a client reads the answer after it has sent all.
_DISCARD_SECONDS = 5.0
_DISCARD_PIECE = 1 << 20
_ENDLESS = sys.maxsize

_COMPLETIONS, _MODELS, _HEALTH = "/v1/chat/completions", "/v1/models", "/health"
_NO_PAGES = CrossOrigin()
Log = Callable[[str], None]


class _GoneError(Exception):
    """The client has closed its connection."""


class ChatServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Listens from the beginning; answers once it has a `service` and `serve_forever` runs.

    port 0: one that is free; api_key: what clients must send as bearer token, "" for none; cors: which web pages
    may use it; log: gets a line for each request. Raises ConfigError where it cannot listen.
    """

    service: ChatService
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, host: str, port: int, *, api_key: str = "", cors: CrossOrigin = _NO_PAGES, log: Log
    ) -> None:
        self.api_key = api_key
        self.cors = cors
        self.log = log
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"cannot listen on {host}, port {port}: {reason}; choose others with --host and --port"
            ) from error

    def server_bind(self) -> None:
        """Without asking for the host's name, for which HTTPServer may wait long."""
        socketserver.TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        """The address to give to clients."""
        host, port = self.server_address[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host))
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def is_open(self) -> bool:
        """Whether other machines may reach it and need no key."""
        return not self.api_key and not ipaddress.ip_address(str(self.server_address[0])).is_loopback

    @property
    def is_open_to_pages(self) -> bool:
        """Whether any web page that is open beside it may use it, and needs no key."""
        return not self.api_key and ANY_ORIGIN in self.cors.origins

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is no news; anything else is a bug and shown as one."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    server: ChatServer
    protocol_version = "HTTP/1.1"
    timeout = 60.0  # seconds in which a client must send or take something
    disable_nagle_algorithm = True
    headers = http.client.HTTPMessage()  # of a request whose first line cannot be read
    _unread = 0  # bytes of the body

    def do_GET(self) -> None:
        """Any method: what a path takes, `_method` says."""
        began, self._unread = time.perf_counter(), self._announced()
        try:
            if self.command == "OPTIONS" and self.server.cors:
                status, note = 204, self._preflight()
            else:
                status, note = 200, self._answer()
        except RequestError as error:
            status, note = error.status, str(error)
            self._refuse(error)
        except (_GoneError, OSError):
            status, note = 499, "the client went away"  # nginx's number for it
            self.close_connection = True
        seconds = time.perf_counter() - began
        self.server.log(printable(f"{self.command} {self.path} {status}, {seconds:.1f} s: {note}"))

    do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_POST = do_PUT = do_GET

    def version_string(self) -> str:
        """The header Server."""
        return "erniekit"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `do_GET` tells of each request once it is done."""

    def end_headers(self) -> None:
        """Every answer, errors and streams too, says which web pages may read it."""
        for name, value in self.server.cors.headers(self.headers.get("Origin")).items():
            self.send_header(name, value)
        super().end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong with a request, as JSON."""
        self.close_connection = True
        self._send(code, error_body(RequestError(message or HTTPStatus(code).phrase, status=code)))

    def _answer(self) -> str:
        """Sends the answer; returns what there is to tell of it."""
        service, path = self.server.service, unquote(urlsplit(self.path).path)
        method = _method(path)
        if method is None:
            known = ", ".join((_COMPLETIONS, _MODELS, _HEALTH))
            raise RequestError(f"there is nothing at {path}; there is {known}", status=404)
        if self.command != method and (self.command, method) != ("HEAD", "GET"):
            raise RequestError(f"{path} takes {method}, not {self.command}", status=405)
        if path == _HEALTH:
            self._send(200, {"status": "ok"})
            return "ok"
        self._check_key()
        if path == _COMPLETIONS:
            return self._complete()
        card = model_card(service.name, service.created)
        if path == _MODELS:
            self._send(200, {"object": "list", "data": [card]})
        else:
            service.check_name(path.removeprefix(f"{_MODELS}/"))
            self._send(200, card)
        return service.name

    def _preflight(self) -> str:
        """What a browser asks before a page's request, without a key and for any path; an error comes after it."""
        self.close_connection |= self._unread > 0
        self.send_response(204)
        for name, value in self.server.cors.preflight(self.headers).items():
            self.send_header(name, value)
        self.end_headers()
        origin = self.headers.get("Origin")
        if origin is None:
            return "no page asks"
        return f"page of {origin}" + (
            "" if self.server.cors.allows(origin) else ", which --cors does not name"
        )

    def _check_key(self) -> None:
        key = self.server.api_key
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if key and not hmac.compare_digest(given.encode(), key.encode()):
            message = "this server wants the key that it was started with (--api-key) as a bearer token"
            raise RequestError(message, status=401, code="invalid_api_key")

    def _complete(self) -> str:
        # Anything else a web page could send to this address without asking first (CORS).
        if self.headers.get_content_type() != "application/json":
            raise RequestError("send JSON, as Content-Type: application/json", status=415)
        request = read_request(self._body())
        job, completion = self.server.service.order(request)
        try:
            if request.stream:
                return self._stream(job, completion, request.include_usage)
            deltas: list[Delta] = []
            for found in self._events(job):
                if isinstance(found, Finished):
                    self._send(200, completion.whole(deltas, found))
                    return _described(found, job)
                deltas += found
            raise _GoneError
        finally:
            job.cancelled.set()

    def _stream(self, job: Job, completion: Completion, include_usage: bool) -> str:
        events = self._events(job)
        found = next(events)  # what is refused before anything has come has a status of its own
        self._begin_stream()
        self._write(event(completion.chunk({"role": "assistant"})))
        try:
            while not isinstance(found, Finished):
                pieces = completion.pieces(found)
                self._write(b"".join([event(completion.chunk(piece)) for piece in pieces]))
                found = next(events)
        except RequestError as error:
            self._write(event(error_body(error)))
            self._end_stream()
            return str(error)
        self._write(event(completion.chunk({}, found)))
        if include_usage:
            self._write(event(completion.usage_chunk(found)))
        self._write(STREAM_END)
        self._end_stream()
        return _described(found, job)

    def _events(self, job: Job) -> Iterator[list[Delta] | Finished]:
        """What comes of a job, up to its end, as long as the client is there. Raises RequestError."""
        while True:
            try:
                found = job.events.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                found = []
            if self._is_gone():
                raise _GoneError
            if isinstance(found, RequestError):
                raise found
            if found:
                yield found

    def _is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        try:
            return bool(poll.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _announced(self) -> int:
        """Bytes of the body; what comes in pieces, or with nonsense for its length, counts as endless."""
        if "Transfer-Encoding" in self.headers:
            return _ENDLESS
        length = self.headers.get("Content-Length", "0")
        return int(length) if length.isascii() and length.isdigit() and len(length) < 19 else _ENDLESS

    def _body(self) -> bytes:
        if self._unread in (0, _ENDLESS):
            raise RequestError("the request needs a body and its Content-Length", status=411)
        if self._unread > MAX_BODY:
            message = f"the body has {self._unread:,} bytes, and at most {MAX_BODY:,} are taken"
            raise RequestError(message, status=413)
        body = self.rfile.read(self._unread)
        if len(body) < self._unread:
            raise _GoneError
        self._unread = 0
        return body

    def _refuse(self, error: RequestError) -> None:
        headers = {}
        if error.status == 405:
            headers["Allow"] = _method(unquote(urlsplit(self.path).path)) or ""
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        try:
            self._send(error.status, error_body(error), headers)
            if self._unread:
                self._discard()
        except OSError:
            self.close_connection = True

    def _discard(self) -> None:
        """Takes in the rest of a body for a while: on a connection that is reset clients lose the answer."""
        self.connection.settimeout(_DISCARD_SECONDS)
        deadline = time.monotonic() + _DISCARD_SECONDS
        while self._unread > 0 and time.monotonic() < deadline:
            piece = self.rfile.read1(min(self._unread, _DISCARD_PIECE))
            if not piece:
                return
            self._unread -= len(piece)

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = to_json(content)
        # A body that stays unread would be taken for the next request.
        self.close_connection |= self._unread > 0
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin_stream(self) -> None:
        # In chunks, so that a client knows a stream that broke off from one that ended.
        self._chunked = self.request_version != "HTTP/1.0"
        self.close_connection |= not self._chunked
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        if self._chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _write(self, piece: bytes) -> None:
        if piece:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)

    def _end_stream(self) -> None:
        if self._chunked:
            self.wfile.write(b"0\r\n\r\n")


def _method(path: str) -> str | None:
    """The method that a path takes, None where there is nothing."""
    if path in (_MODELS, _HEALTH) or path.startswith(f"{_MODELS}/"):
        return "GET"
    return "POST" if path == _COMPLETIONS else None


def _described(finished: Finished, job: Job) -> str:
    notices = "".join(f"; {text}" for text in job.notices)
    cut = " (cut off)" if finished.finish == "length" else ""
    return f"prompt {finished.prompt_tokens:,} tokens, answer {finished.tokens:,} tokens{cut}{notices}"


def example(server: ChatServer, name: str) -> str:
    """A command that asks the model of that name something."""
    question = {"model": name, "messages": [{"role": "user", "content": "Hello"}]}
    command = ["curl", server.url + _COMPLETIONS, "-H", "Content-Type: application/json"]
    command += ["-H", "Authorization: Bearer KEY"] if server.api_key else []
    return shlex.join([*command, "-d", json.dumps(question, ensure_ascii=False)])


def run_server(server: ChatServer, service: ChatService) -> None:
    """Answers until Ctrl-C or SIGTERM, with the model in this thread, which must be the main one."""
    server.service = service
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    try:
        with InterruptGuard(lambda name: service.stop()), suppress(KeyboardInterrupt):
            service.run()
        server.log("stopped")
    finally:
        server.shutdown()
        server.server_close()
