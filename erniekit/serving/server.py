"""Opens the port, and runs the HTTP server and the model until Ctrl-C or SIGTERM."""

from __future__ import annotations

import ipaddress
import json
import shlex
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

from erniekit.errors import ConfigError
from erniekit.interrupt import InterruptGuard
from erniekit.serving.app import COMPLETIONS_PATH, Log
from erniekit.serving.connections import BoundedConnection
from erniekit.serving.service import ChatService

_BACKLOG = 128  # clients that connect while the model is loaded
_KEEP_ALIVE_SECONDS = 30
_CLOSE_SECONDS = 5.0  # at the end, for clients that neither send nor receive


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: a free one. Raises ConfigError."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {reason}; choose others with --host and --port"
        ) from error
    return listener


def server_url(listener: socket.socket) -> str:
    """The URL for clients on this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listens_locally(listener: socket.socket) -> bool:
    """Whether only this machine's programs can connect."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def curl_command(url: str, model_name: str, api_key: str) -> str:
    """An example command for a request."""
    question = {"model": model_name, "messages": [{"role": "user", "content": "Hello"}]}
    command = ["curl", url + COMPLETIONS_PATH, "-H", "Content-Type: application/json"]
    command += ["-H", "Authorization: Bearer KEY"] if api_key else []
    return shlex.join([*command, "-d", json.dumps(question, ensure_ascii=False)])


@contextmanager
def http_server(listener: socket.socket, app: ASGIApp) -> Iterator[None]:
    """Runs the HTTP server in another thread; closes the listener at the end."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=BoundedConnection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        headers=[("Server", "erniekit")],
        proxy_headers=False,
        access_log=False,
        log_config=None,
        log_level="warning",
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_CLOSE_SECONDS)


def run_server(listener: socket.socket, app: ASGIApp, service: ChatService, log: Log) -> None:
    """Answers until Ctrl-C or SIGTERM, with the model in this thread, which must be the main one."""
    guard = InterruptGuard(lambda name: service.stop())
    with guard, suppress(KeyboardInterrupt), http_server(listener, app):
        service.run()
    log("stopped")
