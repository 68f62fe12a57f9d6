"""Who may use a server: keys, the names it answers to, and where it listens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from erniekit.errors import ConfigError
from erniekit.serving.access import access_notes, read_key
from erniekit.serving.cors import parse_origins
from erniekit.serving.server import curl_command, listen, listens_locally, server_url
from tests.unit.generation.scripted import END
from tests.unit.serving.conftest import ASKED, Served


def test_a_key(start: Callable[..., Served]) -> None:
    served = start(api_key="secret", answers=[f"seven{END}"])
    for given in (None, "Bearer other", "Bearer \xe9", "secret", "Basic secret", "Bearer", "Bearersecret"):
        headers = {} if given is None else {"Authorization": given}
        status, answer, response = served.ask("GET", "/v1/models", headers=headers)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert served.ask("GET", "/health")[0] == 200
    assert served.client().chat.completions.create(**ASKED).choices[0].message.content == "seven"
    assert "Authorization: Bearer KEY" in curl_command(served.url, "tiny", "secret")


def test_where_it_cannot_listen() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1, port 8000"):
        listen("192.0.2.1", 8000)
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1, port 99999"):
        listen("127.0.0.1", 99999)


def test_the_url_for_clients() -> None:
    for host, shown in (("::1", "[::1]"), ("0.0.0.0", "127.0.0.1")):
        with listen(host, 0) as listener:
            assert server_url(listener) == f"http://{shown}:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "key", "origin", "note"),
    [
        (
            "0.0.0.0",
            "",
            "",
            "it listens on all addresses of this machine without a key: anyone who can reach it",
        ),
        ("::", "", "", "it listens on all addresses of this machine without a key"),
        ("192.0.2.1", "", "", "it listens on 192.0.2.1 without a key"),
        ("0.0.0.0", "secret", "", ""),
        ("::1", "", "", ""),
        ("127.0.0.1", "", "*", "with --cors '*' any web page in a browser here can use this server"),
        ("127.0.0.1", "secret", "*", ""),
        ("127.0.0.1", "", "http://localhost:3000", ""),
    ],
)
def test_who_can_use_an_open_server(host: str, key: str, origin: str, note: str) -> None:
    notes = access_notes(host, key, parse_origins([origin] if origin else []), on_command_line=False)
    assert len(notes) == bool(note) and all(found.startswith(note) for found in notes)
    assert all("ERNIEKIT_API_KEY or --api-key-file sets a key" in found for found in notes)


def test_a_key_that_everybody_sees() -> None:
    (note,) = access_notes("0.0.0.0", "secret", (), on_command_line=True)
    assert "list of processes" in note and "secret" not in note


def test_keys_in_files(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    assert read_key("", file) == "secret" == read_key("secret", None) and read_key("", None) == ""
    for content, message in (("\n", "is empty"), ("two words", "printable ASCII"), ("schlüssel", "ASCII")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            read_key("", file)
    for given, named in (("secret", file), ("", tmp_path / "none"), ("", tmp_path)):
        with pytest.raises(ConfigError, match=r"not both|cannot be read"):
            read_key(given, named)


def test_a_server_without_a_key_answers_only_to_its_own_names(start: Callable[..., Served]) -> None:
    served = start(local_only=True, answers=[f"seven{END}"])
    for host in (
        "localhost",
        f"LOCALHOST:{served.port}",
        "127.0.0.1",
        "127.8.9.1:80",
        "[::1]:8000",
        "localhost.",
    ):
        assert served.ask("GET", "/health", headers={"Host": host})[0] == 200
    for host in (
        "page.example",
        f"page.example:{served.port}",
        "127.0.0.1.page.example",
        "[",
        "0.0.0.0",
        "localhost@x",
    ):
        status, answer, _ = served.ask("GET", "/v1/models", headers={"Host": host})
        assert status == 403 and "answers only requests to localhost" in answer["error"]["message"]
    assert served.client().chat.completions.create(**ASKED).choices[0].message.content == "seven"


def test_who_listens_locally() -> None:
    for host, local in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        with listen(host, 0) as listener:
            assert listens_locally(listener) == local
