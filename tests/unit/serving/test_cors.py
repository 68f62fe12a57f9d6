"""The server and web pages: what browsers need to see in its answers (CORS)."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable

import pytest

from erniekit.errors import ConfigError
from erniekit.serving.cors import parse_origins
from tests.unit.generation.scripted import END
from tests.unit.serving.conftest import ASKED, HANGS, Served

pytestmark = pytest.mark.slow

PAGE = "http://localhost:3000"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


@pytest.mark.parametrize("cors", [(PAGE,), ("https://chat.example", PAGE + "/"), ("*",)])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/models/tiny", "/v1/embeddings"])
def test_a_page_asks_first(start: Callable[..., Served], cors: tuple[str, ...], path: str) -> None:
    served = start(api_key="secret", cors=cors)  # no browser sends a key with OPTIONS
    status, response = served.preflight(path, PREFLIGHT)
    assert status == 200
    found = response.headers
    assert found["Access-Control-Allow-Origin"] == ("*" if cors == ("*",) else PAGE)
    assert {"GET", "POST"} <= set(found["Access-Control-Allow-Methods"].split(", "))
    assert found["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert int(found["Access-Control-Max-Age"]) > 0 and "Origin" in found["Vary"].split(", ")
    assert "Access-Control-Allow-Private-Network" not in found
    assert f"OPTIONS {path} 200" in (line := served.lines.get(timeout=HANGS)) and PAGE in line


@pytest.mark.parametrize("streamed", [False, True])
def test_a_page_reads_answers_and_errors(start: Callable[..., Served], streamed: bool) -> None:
    served = start(api_key="secret", answers=[f"seven{END}"], cors=(PAGE,))
    asked = {**ASKED, "stream": streamed}
    given = {"Authorization": "Bearer secret"}
    for method, path, body, more, wanted in (
        ("POST", "/v1/chat/completions", asked, given, 200),
        ("POST", "/v1/chat/completions", {**asked, "n": 2}, given, 400),
        ("POST", "/v1/chat/completions", asked, {}, 401),
        ("GET", "/v1/models", None, given, 200),
        ("GET", "/v1/embeddings", None, given, 404),
        ("DELETE", "/v1/models", None, given, 405),
        ("BREW", "/v1/models", None, given, 405),
    ):
        connection = http.client.HTTPConnection(served.host, served.port, timeout=HANGS)
        sent = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json", "Origin": PAGE, **more}
        connection.request(method, path, sent, headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        assert response.status == wanted
        assert response.headers.get_all("Access-Control-Allow-Origin") == [PAGE]
        assert response.headers.get_all("Vary") == ["Origin"]


@pytest.mark.parametrize("origin", ["http://localhost:3001", "https://localhost:3000", "null", "", None])
def test_other_pages_get_no_headers(start: Callable[..., Served], origin: str | None) -> None:
    served = start(cors=(PAGE,))
    headers = {**PREFLIGHT, "Origin": origin} if origin is not None else {}
    status, asked = served.preflight("/v1/chat/completions", headers)
    assert status == (405 if origin is None else 400)
    status, _, response = served.ask("GET", "/v1/models", headers=headers)
    assert status == 200
    for found in (asked, response):
        assert "Access-Control-Allow-Origin" not in found.headers
    if origin:
        assert f"web page of {origin}, which is not in --cors" in served.lines.get(timeout=HANGS)


def test_without_cors_a_page_is_a_client_like_any_other(start: Callable[..., Served]) -> None:
    served = start()
    for method, wanted in (("OPTIONS", 405), ("GET", 200)):
        status, _, response = served.ask(method, "/v1/models", headers=PREFLIGHT)
        assert status == wanted
        assert not {"Vary", "Access-Control-Allow-Origin"} & set(response.headers)


def test_a_page_may_use_a_server_in_its_private_network(start: Callable[..., Served]) -> None:
    served = start(cors=(PAGE,))
    headers = {**PREFLIGHT, "Access-Control-Request-Private-Network": "true"}
    status, response = served.preflight("/v1/models", headers)
    assert (status, response.headers["Access-Control-Allow-Private-Network"]) == (200, "true")


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("HTTP://LocalHost:3000/", PAGE),
        ("https://chat.example:443", "https://chat.example"),
        ("http://[::1]:80", "http://[::1]"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", "null"),
        ("*", "*"),
    ],
)
def test_origins_are_read_as_browsers_write_them(written: str, origin: str) -> None:
    assert parse_origins([written, written]) == (origin,)


@pytest.mark.parametrize(
    "written",
    ["", "localhost", "localhost:3000", "http://", "http://a/chat", "https://*.example.com", "http://a:x"],
)
def test_what_is_no_origin_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="is not an origin; write the page's scheme, host and port"):
        parse_origins([written])
