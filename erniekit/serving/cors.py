"""Cross-origin requests (CORS): the origins of the web pages that may use the server."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from erniekit.errors import ConfigError

ANY_ORIGIN = "*"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_origins(texts: Sequence[str]) -> tuple[str, ...]:
    """Origins as browsers send them, from what a user writes. Raises ConfigError for text that is not an origin."""
    return tuple(dict.fromkeys(map(_parse_origin, texts)))


def _parse_origin(text: str) -> str:
    """Scheme and host in lower case, without the scheme's default port."""
    if text in (ANY_ORIGIN, "null"):  # "null": pages that are files
        return text
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise _not_an_origin(text) from error
    if not (url.scheme and url.hostname) or "@" in url.netloc or "*" in url.netloc:
        raise _not_an_origin(text)
    if url.path not in ("", "/") or url.query or url.fragment:
        raise _not_an_origin(text)
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    shown = "" if port is None or port == _DEFAULT_PORTS.get(url.scheme) else f":{port}"
    return f"{url.scheme}://{host}{shown}"


def _not_an_origin(text: str) -> ConfigError:
    return ConfigError(
        f"--cors {text}: is not an origin; write the page's scheme, host and port without a path, for example "
        'http://localhost:3000, or "*" for all pages'
    )
