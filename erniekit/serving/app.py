"""The HTTP interface of `erniekit serve` (ASGI): routes, API key, bodies, streams, errors, one log line a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from erniekit.display.text import visible
from erniekit.generation.answer import Delta
from erniekit.serving.access import check_host, check_key
from erniekit.serving.cors import ANY_ORIGIN
from erniekit.serving.fields import RequestError
from erniekit.serving.limits import MAX_BODY_BYTES, MAX_HELD_BYTES, BodyLimits
from erniekit.serving.media import has_urls, with_media
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
from erniekit.serving.service import ChatService, Event, QueuedRequest

COMPLETIONS_PATH, MODELS_PATH, HEALTH_PATH = "/v1/chat/completions", "/v1/models", "/health"
_FETCHERS = 8  # requests that download images and videos at a time
_READERS = 2  # requests that are parsed and tokenized at a time: a large one takes hundreds of MB meanwhile
_PREFLIGHT_SECONDS = 86400  # browsers shorten it to their own limit
Log = Callable[[str], None]


def make_app(
    service: ChatService,
    *,
    api_key: str = "",
    local_only: bool = False,
    cors_origins: Sequence[str] = (),
    log: Log,
) -> Starlette:
    """The ASGI application.

    api_key: the bearer token that clients must send, "" for none; local_only: whether requests must name this machine
    as their host, see `check_host`; cors_origins: the origins of web pages that may use the server, from
    `parse_origins`; log: is called with a line for each request.
    """
    endpoints = _Endpoints(service, api_key)
    middleware = [
        Middleware(_RequestLog, log=log, cors_origins=cors_origins),
        Middleware(BodyLimits, body_bytes=MAX_BODY_BYTES, held_bytes=MAX_HELD_BYTES),
    ]
    if local_only:
        middleware.insert(1, Middleware(_LocalOnly))
    if cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=cors_origins,
                allow_methods=("GET", "HEAD", "POST"),
                allow_headers=("*",),
                allow_private_network=True,
                max_age=_PREFLIGHT_SECONDS,
            )
        )
    app = Starlette(
        routes=[
            Route(HEALTH_PATH, endpoints.health),
            Route(MODELS_PATH, endpoints.models),
            Route(MODELS_PATH + "/{name:path}", endpoints.model),
            Route(COMPLETIONS_PATH, endpoints.complete, methods=["POST"]),
        ],
        middleware=middleware,
        exception_handlers={RequestError: _refuse, HTTPException: _refuse, ClientDisconnect: _gone},
    )
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    """The handlers of the routes. `request.state.note` is for the log."""

    def __init__(self, service: ChatService, api_key: str) -> None:
        self._service = service
        self._api_key = api_key
        self._readers = CapacityLimiter(_READERS)
        self._fetchers = CapacityLimiter(_FETCHERS)

    async def health(self, request: Request) -> Response:
        request.state.note = "ok"
        return _json({"status": "ok"})

    async def models(self, request: Request) -> Response:
        check_key(request, self._api_key)
        request.state.note = self._service.name
        return _json({"object": "list", "data": [model_card(self._service.name, self._service.created)]})

    async def model(self, request: Request) -> Response:
        check_key(request, self._api_key)
        self._service.check_name(request.path_params["name"])
        request.state.note = self._service.name
        return _json(model_card(self._service.name, self._service.created))

    async def complete(self, request: Request) -> Response:
        check_key(request, self._api_key)
        # Web pages can send other types to any address without a preflight request.
        if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError("send JSON, as Content-Type: application/json", status=415)
        body = await request.body()
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | None]()

        def on_event(found: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, found)

        chat = await to_thread.run_sync(read_request, body, limiter=self._readers)
        conversation = await to_thread.run_sync(self._service.read, chat, limiter=self._readers)
        if has_urls(conversation):
            conversation, size = await to_thread.run_sync(with_media, conversation, limiter=self._fetchers)
            request.state.hold(size)
        queued, completion = await to_thread.run_sync(
            self._service.submit, chat, conversation, on_event, limiter=self._readers
        )
        answer = _answer(request, queued, events)
        if chat.stream:
            first = await anext(answer)  # an error before it has its own status
            content = _stream(request, queued, completion, first, answer, chat.include_usage)
            return StreamingResponse(
                content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        deltas: list[Delta] = []
        async for found in answer:
            if isinstance(found, Finished):
                request.state.note = _usage_note(found, queued)
                response = _json(completion.whole(deltas, found))
            else:
                deltas += found
        return response


async def _answer(
    request: Request, queued: QueuedRequest, events: asyncio.Queue[Event | None]
) -> AsyncIterator[list[Delta] | Finished]:
    """The pieces of the answer, then its end. Raises RequestError, or ClientDisconnect when the client is gone."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        request.state.disconnected = True
        queued.cancelled.set()
        events.put_nowait(None)

    watching = asyncio.create_task(watch())
    try:
        while not isinstance(found := await events.get(), Finished):
            if found is None:
                raise ClientDisconnect
            if isinstance(found, RequestError):
                raise found
            if found:
                yield found
    finally:
        # Before the response is complete: from then on, the server reports a disconnect too.
        watching.cancel()
        queued.cancelled.set()
    yield found


async def _stream(
    request: Request,
    queued: QueuedRequest,
    completion: Completion,
    found: list[Delta] | Finished,
    answer: AsyncIterator[list[Delta] | Finished],
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """Server-sent events for an answer. found: its first piece."""
    yield event(completion.chunk({"role": "assistant"}))
    try:
        while not isinstance(found, Finished):
            for piece in completion.pieces(found):
                yield event(completion.chunk(piece))
            found = await anext(answer)
    except RequestError as error:
        request.state.note = str(error)
        yield event(error_body(error))
        return
    except ClientDisconnect:
        return
    request.state.note = _usage_note(found, queued)
    yield event(completion.chunk({}, found))
    if include_usage:
        yield event(completion.usage_chunk(found))
    yield STREAM_END


class _RequestLog:
    """Writes a line for each request when it is answered, or its client is gone."""

    def __init__(self, app: ASGIApp, *, log: Log, cors_origins: Sequence[str]) -> None:
        self._app = app
        self._log = log
        self._cors_origins = cors_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self._app(scope, receive, send_and_note)
        request = Request(scope)
        note = getattr(request.state, "note", "")
        if hasattr(request.state, "disconnected"):
            status, note = 499, "the client disconnected"  # nginx's status for a client that is gone
        elif not note:
            note = self._preflight_note(request)
        path, seconds = scope["raw_path"].decode(), time.perf_counter() - began
        self._log(visible(f"{request.method} {path} {status}, {seconds:.1f} s: {note}"))

    def _preflight_note(self, request: Request) -> str:
        origin = request.headers.get("Origin")
        allowed = ANY_ORIGIN in self._cors_origins or origin in self._cors_origins
        return f"web page of {origin}" + ("" if allowed else ", which is not in --cors")


class _LocalOnly:
    """Refuses requests to other hosts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            check_host(request)
        except RequestError as error:
            response = await _refuse(request, error)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def _refuse(request: Request, error: Exception) -> Response:
    """An error of an endpoint (RequestError) or of the router (HTTPException), in OpenAI's form."""
    headers: Mapping[str, str] | None = None
    if isinstance(error, HTTPException):
        headers = error.headers
        error = RequestError(_router_message(request, error), status=error.status_code)
    assert isinstance(error, RequestError)
    if error.status == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    request.state.note = str(error) + (f"; {error.logged}" if error.logged else "")
    return _json(error_body(error), error.status, headers)


def _router_message(request: Request, error: HTTPException) -> str:
    path = request.scope["path"]  # request.url fails where a target or a host is no URL
    if error.status_code == 405 and error.headers is not None:
        methods = " or ".join(sorted(error.headers["Allow"].split(", ")))
        return f"{path} takes {methods}, not {request.method}"
    if error.status_code == 404:
        return f"there is nothing at {path}; there is {COMPLETIONS_PATH}, {MODELS_PATH}, {HEALTH_PATH}"
    return error.detail


async def _gone(request: Request, error: Exception) -> Response:
    request.state.disconnected = True
    return Response(status_code=499)


def _json(content: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(content), status, headers, media_type="application/json")


def _usage_note(finished: Finished, queued: QueuedRequest) -> str:
    notices = "".join(f"; {text}" for text in queued.notices)
    cut = " (cut off)" if finished.finish == "length" else ""
    return f"prompt {finished.prompt_tokens:,} tokens, answer {finished.tokens:,} tokens{cut}{notices}"
