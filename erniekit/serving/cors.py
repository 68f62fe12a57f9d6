"""Cross-origin requests (CORS): which web pages may ask the server and read its answers.

A browser asks with OPTIONS first (the preflight), and hides an answer whose headers do not name the page's origin.
Source: the Fetch standard, "HTTP-CORS protocol"; Private Network Access for servers on the user's own machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from urllib.parse import urlsplit

from erniekit.errors import ConfigError

ANY_ORIGIN = "*"
METHODS = "GET, HEAD, POST, OPTIONS"
_DEFAULT_HEADERS = "Authorization, Content-Type"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_AGE = 86400  # seconds for which a browser need not ask again; browsers shorten it to their own limit
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class CrossOrigin:
    """The origins whose pages may use a server, as browsers write them, or "*" for all; without any, no CORS."""

    origins: tuple[str, ...] = ()

    @classmethod
    def from_options(cls, origins: Sequence[str]) -> CrossOrigin:
        """From what a user writes. Raises ConfigError for what is no origin."""
        return cls(tuple(dict.fromkeys(map(_origin, origins))))

    def __bool__(self) -> bool:
        return bool(self.origins)

    def allows(self, origin: str) -> bool:
        """Whether pages of this origin may read answers."""
        return ANY_ORIGIN in self.origins or origin in self.origins

    def headers(self, origin: str | None) -> dict[str, str]:
        """What every answer needs, errors too. origin: the request's header, None for a client that is no page."""
        if not self:
            return {}
        found = {"Vary": "Origin"}
        if origin is not None and self.allows(origin):
            found["Access-Control-Allow-Origin"] = ANY_ORIGIN if ANY_ORIGIN in self.origins else origin
        return found

    def preflight(self, request: Message) -> dict[str, str]:
        """What the answer to OPTIONS needs beside `headers`. request: its headers."""
        origin = request.get("Origin")
        if origin is None or not self.allows(origin):
            return {"Allow": METHODS}
        # "*" would leave out Authorization. Only names go back, never what else a header can hold.
        wanted = _HEADER_NAME.findall(request.get("Access-Control-Request-Headers", ""))
        found = {
            "Allow": METHODS,
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": ", ".join(wanted) or _DEFAULT_HEADERS,
            "Access-Control-Max-Age": str(_MAX_AGE),
        }
        if request.get("Access-Control-Request-Private-Network") == "true":
            found["Access-Control-Allow-Private-Network"] = "true"
        return found


def _origin(text: str) -> str:
    """An origin as a browser writes it: scheme and host in small letters, no port that is the scheme's own."""
    if text in (ANY_ORIGIN, "null"):  # "null": pages that are files
        return text
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise _no_origin(text) from error
    if not (url.scheme and url.hostname) or "@" in url.netloc or "*" in url.netloc:
        raise _no_origin(text)
    if url.path not in ("", "/") or url.query or url.fragment:
        raise _no_origin(text)
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    shown = "" if port is None or port == _DEFAULT_PORTS.get(url.scheme) else f":{port}"
    return f"{url.scheme}://{host}{shown}"


def _no_origin(text: str) -> ConfigError:
    return ConfigError(
        f"--cors {text}: is no origin; write scheme, host and port of the page as in http://localhost:3000, "
        'without a path, or "*" for all pages'
    )
