"""Limits the connections of the HTTP server: their number, and the time to send a request or read an answer."""

from __future__ import annotations

import asyncio
from typing import Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 5\r\nConnection: close\r\n\r\n"
)


class BoundedConnection(H11Protocol):
    """uvicorn's connection with additional limits, which slow transfers do not extend.

    max_connections: further ones are refused; head_seconds, body_seconds: for a request up to its body, and for the
    body; write_seconds: for a client that does not read. Heads are limited to 16 KiB by h11.
    """

    max_connections = 256
    head_seconds = 30.0
    body_seconds = 300.0
    write_seconds = 60.0

    _receiving: Literal["head", "body"] | None = None
    _receive_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(_FULL)
            transport.close()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _watch(self) -> None:
        """Start the time limit of the part of a request that is being received, if that is a new part."""
        state = self.conn.their_state
        receiving: Literal["head", "body"] | None = None
        if state is h11.IDLE:
            receiving = "head"
        elif state is h11.SEND_BODY:
            receiving = "body"
        if receiving == self._receiving:
            return
        self._receiving = receiving
        if self._receive_timer is not None:
            self._receive_timer.cancel()
        if receiving is not None:
            seconds = self.head_seconds if receiving == "head" else self.body_seconds
            self._receive_timer = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self.transport.is_closing():
            return
        begun = self.conn.our_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if begun or self.conn.our_state is h11.SEND_RESPONSE:
            self.transport.write(_TIMEOUT)
        self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._receive_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
