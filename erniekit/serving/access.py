"""Checks who may use the server: clients with its key, or without a key only programs on this machine."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request

from erniekit.errors import ConfigError
from erniekit.serving.cors import ANY_ORIGIN
from erniekit.serving.fields import RequestError

KEY_VARIABLE = "ERNIEKIT_API_KEY"
_ADVICE = f"{KEY_VARIABLE} or --api-key-file sets a key, which restricts it"


def read_key(given: str, file: Path | None) -> str:
    """The key of --api-key or its environment variable, or in a file; "" for none. Raises ConfigError."""
    if file is not None and given:
        raise ConfigError("give either an API key or --api-key-file, not both")
    key, where = given, "the API key"
    if file is not None:
        where = f"--api-key-file {file}"
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read: {getattr(error, 'strerror', error)}") from None
        if not key:
            raise ConfigError(f"{where}: is empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{where} must be printable ASCII without spaces, since clients send it in a header"
        )
    return key


def check_key(request: Request, key: str) -> None:
    """Raises RequestError for a request without the key, if there is one."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if key and not (scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())):
        message = "this server needs its API key, as the header Authorization: Bearer KEY"
        raise RequestError(message, status=401, code="invalid_api_key")


def check_host(request: Request) -> None:
    """Raises RequestError for a request to a name that is not this machine's.

    The name of a web page can be resolved to this machine (DNS rebinding); a browser then considers the server the
    page's own, and sends requests without an origin.
    """
    host = request.headers.get("Host", "")
    if host and not is_local(host):
        message = (
            "this server has no API key and answers only requests to localhost, not to the host that this one names; "
            "start it with a key to use it under other names"
        )
        raise RequestError(message, status=403)


def is_local(host: str) -> bool:
    """Whether a Host header names this machine itself: localhost or a loopback address, with or without a port."""
    name, bracket, _ = host.partition("]") if host.startswith("[") else host.partition(":")
    if bracket == "]":
        name = name.removeprefix("[")
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def access_notes(host: str, api_key: str, cors_origins: Sequence[str], *, on_command_line: bool) -> list[str]:
    """Warnings about a server without a key that other machines can use, and about a visible key.

    host: the address it listens on; on_command_line: whether the key was given on the command line.
    """
    notes = []
    if not api_key and not ipaddress.ip_address(host).is_loopback:
        where = "all addresses of this machine" if ipaddress.ip_address(host).is_unspecified else host
        notes.append(f"it listens on {where} without a key: anyone who can reach it can use it; {_ADVICE}")
    if not api_key and ANY_ORIGIN in cors_origins:
        notes.append(f"with --cors '*' any web page in a browser here can use this server; {_ADVICE}")
    if on_command_line:
        notes.append(
            f"the key given by --api-key is visible in the list of processes; use {KEY_VARIABLE} or --api-key-file"
        )
    return notes
