"""Downloads the images and videos that samples name by URL, once, into a cache directory.

Only ever called where `data.allow_urls` is set: without it formats refuse URLs.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote, urlsplit

from erniekit.data.chat.conversation import SampleError
from erniekit.paths import user_cache_dir

MAX_BYTES = 1 << 30
TIMEOUT = 60.0
_SCHEMES = ("http", "https")
_CHUNK = 1 << 18
_LONGEST_SUFFIX = 8


def cache_dir() -> Path:
    """Where downloads are kept."""
    return user_cache_dir() / "media"


def fetch(
    url: str, directory: Path, sample_id: str, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT
) -> Path:
    """The file in directory that holds what the URL gives; downloaded if it is not there yet.

    Named by the digest of the URL, and in place only when complete, so any number of processes may share the
    directory. timeout: seconds for the whole download. Raises SampleError "not fetched": another scheme than
    http(s), also after a redirect; no answer, an error or none in time; more than max_bytes, or fewer than
    announced.
    """
    try:
        if urlsplit(url).scheme.lower() not in _SCHEMES:
            raise _not_fetched(sample_id, url, "only http and https URLs are fetched")
        path = Path(directory) / (hashlib.sha256(url.encode()).hexdigest() + _suffix(url))
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                _download(url, file, sample_id, max_bytes, timeout)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _not_fetched(sample_id, url, str(error) or type(error).__name__) from error
    return path


def _download(url: str, file: IO[bytes], sample_id: str, max_bytes: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    # Text beyond ASCII and spaces, which URLs in data often have, must be escaped; what is escaped stays so.
    request = urllib.request.Request(
        quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": "erniekit"}
    )
    with _opener().open(request, timeout=timeout) as response:
        announced = response.headers.get("Content-Length")
        received = 0
        while block := response.read1(_CHUNK):
            received += len(block)
            if received > max_bytes:
                raise _not_fetched(sample_id, url, f"it is larger than {max_bytes:,} bytes")
            if time.monotonic() > deadline:
                raise _not_fetched(sample_id, url, f"it takes more than {timeout:g} s")
            file.write(block)
    if announced is not None and announced.isdigit() and received != int(announced):
        raise _not_fetched(sample_id, url, f"the connection broke after {received:,} of {announced} bytes")


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects, but to http(s) only."""

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
            raise urllib.error.URLError(f"it redirects to {newurl}, and only http and https URLs are fetched")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener that knows http(s) alone: urllib's usual one also reads file:, ftp: and data: URLs."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
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
