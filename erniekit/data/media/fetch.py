"""Downloads the images and videos of samples once, into a cache directory.

Only used with `data.allow_urls`; otherwise the formats reject URLs. Connects to public addresses only, unless the URL
has the prefix `PRIVATE`: data must not reach services of this machine and its networks.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import os
import socket
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote, urlsplit

from erniekit.data.chat.conversation import SampleError
from erniekit.paths import user_cache_dir

PRIVATE = "private+"
"""Prefix of a source's URL that permits any address. Added with data.allow_private_urls."""

MAX_BYTES = 1 << 30
TIMEOUT = 60.0
_SCHEMES = ("http", "https")
_CHUNK = 1 << 18
_LONGEST_SUFFIX = 8
# IPv6 addresses with an IPv4 address in their last 32 bits.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def cache_dir() -> Path:
    """The directory of downloads."""
    return user_cache_dir() / "media"


def fetch(
    source: str, directory: Path, sample_id: str, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT
) -> Path:
    """Download a URL to a file in a directory, unless the file exists. Returns its path.

    The name is the digest of the URL, and the file only appears when it is complete, so processes may share the
    directory. Raises as `download`.
    """
    url = source.removeprefix(PRIVATE)
    try:
        path = Path(directory) / (hashlib.sha256(url.encode()).hexdigest() + _suffix(url))
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                download(source, file, sample_id, max_bytes=max_bytes, timeout=timeout)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
    except (OSError, ValueError) as error:
        raise _not_fetched(sample_id, url, str(error) or type(error).__name__) from error
    return path


def download(source: str, file: IO[bytes], sample_id: str, *, max_bytes: int, timeout: float) -> None:
    """Download a URL into a file. timeout: for the whole download, in seconds.

    Raises SampleError "not fetched" for a scheme other than http(s) or an address that is not public, also after a
    redirect; for a failed or late response; and for more than max_bytes, or fewer bytes than announced.
    """
    url = source.removeprefix(PRIVATE)
    with _Deadline(timeout) as deadline:
        try:
            _download(url, file, sample_id, max_bytes, deadline, public_only=url == source)
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = f"the download takes more than {timeout:g} s" if deadline.passed else str(error)
            raise _not_fetched(sample_id, url, why or type(error).__name__) from error


def _download(
    url: str, file: IO[bytes], sample_id: str, max_bytes: int, deadline: _Deadline, *, public_only: bool
) -> None:
    if urlsplit(url).scheme.lower() not in _SCHEMES:
        raise ValueError("only http and https URLs are fetched")
    # Escape spaces and characters that are not ASCII, which URLs in data often have; keep existing escapes.
    request = urllib.request.Request(
        quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": "erniekit"}
    )
    with _opener(deadline, public_only).open(request, timeout=deadline.seconds) as response:
        announced = response.headers.get("Content-Length")
        received = 0
        while block := response.read1(_CHUNK):
            received += len(block)
            if received > max_bytes:
                raise _not_fetched(sample_id, url, f"the file is larger than {max_bytes:,} bytes")
            file.write(block)
    if deadline.passed:
        raise TimeoutError
    if announced is not None and announced.isdigit() and received != int(announced):
        raise _not_fetched(sample_id, url, f"the connection broke after {received:,} of {announced} bytes")


class _Deadline:
    """Closes the connections of a download after a time, whatever they wait for."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        with self._lock:
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()

    def add(self, connection: socket.socket) -> None:
        """Watch a connection."""
        with self._lock:
            # TLS detaches the file descriptor of a socket. A duplicate refers to the same connection.
            self._sockets.append(connection.dup())
            if self.passed:
                raise TimeoutError

    def _end(self) -> None:
        with self._lock:
            self.passed = True
            for connection in self._sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _require_public(host: str, address: str) -> None:
    if not is_public(address):
        raise ValueError(
            f"{host} is at {address}, which is not a public address: data.allow_private_urls allows it"
        )


def is_public(address: str) -> bool:
    """Whether an IP address is public: not loopback, private, link-local, multicast or reserved."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    return found.is_global and not found.is_multicast


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def _connector(deadline: _Deadline, public_only: bool) -> Callable[..., socket.socket]:
    """A replacement of `socket.create_connection` that checks the addresses it connects to."""

    def connect(address: tuple[str, int], timeout: float, source_address: object = None) -> socket.socket:
        host, port = address
        found = _addresses(host, port)
        if public_only:
            for _, place in found:
                _require_public(host, place[0])
        last: OSError = OSError(f"{host} has no address")
        for family, place in found:
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                connection.settimeout(timeout)
                deadline.add(connection)
                connection.connect(place)
                return connection
            except OSError as error:
                connection.close()
                last = error
        raise last

    return connect


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """http and https over checked connections. A proxy may have any address; the host behind it is checked."""

    def __init__(self, deadline: _Deadline, public_only: bool) -> None:
        super().__init__()
        self._deadline = deadline
        self._public_only = public_only

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self._open(req, req.has_proxy(), http.client.HTTPConnection)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        tunnelled = getattr(req, "_tunnel_host", None) is not None
        return self._open(req, tunnelled, http.client.HTTPSConnection, context=ssl.create_default_context())

    def _open(
        self,
        request: urllib.request.Request,
        by_proxy: bool,
        kind: Callable[..., http.client.HTTPConnection],
        **arguments: object,
    ) -> http.client.HTTPResponse:
        host = urlsplit(request.full_url).hostname or ""
        if by_proxy and self._public_only:
            with suppress(socket.gaierror):  # a name that only the proxy can resolve
                for _, place in _addresses(host, 0):
                    _require_public(host, place[0])
        connect = _connector(self._deadline, self._public_only and not by_proxy)

        def connection(host: str, **more: object) -> http.client.HTTPConnection:
            made = kind(host, **more)
            made._create_connection = connect  # type: ignore[attr-defined]
            return made

        return self.do_open(connection, request, **arguments)


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme.lower() not in _SCHEMES:
            raise urllib.error.URLError(
                f"the URL redirects to {newurl}, but only http and https URLs are fetched"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(deadline: _Deadline, public_only: bool) -> urllib.request.OpenerDirector:
    """An opener for http(s) only: urllib's default one also opens file:, ftp: and data: URLs."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Handler(deadline, public_only),
        urllib.request.HTTPDefaultErrorHandler(),
        _HttpRedirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _suffix(url: str) -> str:
    suffix = PurePosixPath(urlsplit(url).path).suffix
    return suffix if suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= _LONGEST_SUFFIX else ""


def _not_fetched(sample_id: str, url: str, why: str) -> SampleError:
    return SampleError(sample_id, "not fetched", f"cannot fetch {url}: {why}")
