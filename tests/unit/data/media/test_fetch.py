import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from erniekit.data.chat.conversation import SampleError
from erniekit.data.media import fetch as fetching
from erniekit.data.media.access import PUBLIC_URLS, MediaAccess
from erniekit.data.media.fetch import PRIVATE, cache_dir, fetch, is_public
from erniekit.data.media.images import image_size, is_url, open_image, resolve_source
from erniekit.data.media.video import load_frames, video_info
from tests.unit.data.helpers import encoded, noise
from tests.unit.data.videos import number_of, video

IMAGE = noise(20, 30)
CONTENT = {"/a.png": encoded(IMAGE), "/v.mp4": video(5), "/page.png": b"<!DOCTYPE html><html>Sorry</html>"}


class Server(http.server.ThreadingHTTPServer):
    asked: Counter[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        path = self.path.partition("?")[0]
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/to/") or self.path)
            self.end_headers()
        elif path == "/cut":
            self.respond(b"x" * 100, announced=1000)
        elif path == "/big":
            self.respond(b"x" * 100_000, announced=None)
        elif path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif path == "/dribble":
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif path == "/late":
            time.sleep(60)
            self.respond(b"x", announced=1)
        elif path in CONTENT:
            self.respond(CONTENT[path], announced=len(CONTENT[path]))
        else:
            self.send_error(404)

    def respond(self, content: bytes, announced: int | None) -> None:
        self.send_response(200)
        if announced is not None:
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked = Counter()
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients hang up here
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_what_was_fetched_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    first = fetch(PRIVATE + url(server, "/a.png?size=1"), tmp_path / "new" / "cache", "f:1")
    assert first.read_bytes() == CONTENT["/a.png"]
    assert first.suffix == ".png"
    assert fetch(PRIVATE + url(server, "/a.png?size=1"), tmp_path / "new" / "cache", "f:2") == first
    assert fetch(PRIVATE + url(server, "/a.png?size=2"), tmp_path / "new" / "cache", "f:2") != first
    assert server.asked == {"/a.png?size=1": 1, "/a.png?size=2": 1}


def test_spaces_and_letters_beyond_ascii_are_escaped(server: Server, tmp_path: Path) -> None:
    assert (
        fetch(PRIVATE + url(server, "/to//a.png?q=ü b%20c"), tmp_path, "f:1").read_bytes()
        == CONTENT["/a.png"]
    )
    assert "/to//a.png?q=%C3%BC%20b%20c" in server.asked


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none.png", "404"),
        ("/cut", r"broke after 100 of 1000 bytes"),
        ("/big", "larger than 50,000 bytes"),
        ("/slow", "takes more than 0.3 s"),
        ("/dribble", "takes more than 0.3 s"),
        ("/late", "takes more than 0.3 s"),
        ("/to/file:///etc/passwd", "file:///etc/passwd' is not allowed"),
        ("/to/ftp://127.0.0.1/a", "redirects to ftp:.*only http"),
        ("/to/", "redirect"),
    ],
)
def test_what_cannot_be_fetched(server: Server, tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        timeout = 0.3 if path in ("/slow", "/dribble", "/late") else 600
        fetch(PRIVATE + url(server, path), tmp_path, "f:1", max_bytes=50_000, timeout=timeout)
    assert caught.value.reason == "not fetched"
    assert url(server, path) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "address", ["ftp://127.0.0.1/a", "file:///etc/passwd", "http://[::1", "http://127.0.0.1:1/a", "http:///a"]
)
def test_addresses_that_lead_nowhere(tmp_path: Path, address: str) -> None:
    with pytest.raises(SampleError, match=r"^f:1: cannot fetch ") as caught:
        fetch(address, tmp_path, "f:1", timeout=2)
    assert caught.value.reason == "not fetched"


def test_a_directory_that_cannot_be_written_is_reported(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SampleError, match="cannot fetch"):
        fetch(PRIVATE + url(server, "/a.png"), tmp_path / "file" / "cache", "f:1")


def test_many_at_once_leave_one_whole_file(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: fetch(PRIVATE + url(server, "/a.png"), tmp_path, "f:1"), range(16)))
    assert len(set(found)) == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [CONTENT["/a.png"]]


def test_images_and_videos_are_fetched_when_first_opened(server: Server) -> None:
    image = resolve_source(url(server, "/a.png"), Path("/"), "f:1", access=MediaAccess("any"))
    film = resolve_source(
        {"url": url(server, "/v.mp4")}, Path("/"), "f:1", kind="video", access=MediaAccess("any")
    )
    assert not server.asked
    assert image_size(image, "f:1") == (20, 30)
    np.testing.assert_array_equal(np.asarray(open_image(image, "f:1")), np.asarray(IMAGE))
    assert video_info(film, "f:1").frames == 5
    assert [number_of(frame) for frame in load_frames(film, (1, 4), "f:1")] == [1, 4]
    assert server.asked == {"/a.png": 1, "/v.mp4": 1}
    assert len(list(cache_dir().iterdir())) == 2


def test_a_page_in_place_of_an_image_is_reported_by_its_url(server: Server) -> None:
    with pytest.raises(SampleError, match=r"/page\.png, kept as .*/cache/.*\.png \(it is a web page"):
        image_size(PRIVATE + url(server, "/page.png"), "f:1")


def test_the_cache_is_under_home_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/erniekit/media")


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "localhost",
            "0x7f000001",
            "2130706433",
            "127.1",
            "0177.0.0.1",
            "0.0.0.0",
            "[::1]",
            "[::]",
        ),
        *(
            "[::ffff:127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
        ),
        *(
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "[fe80::1]",
            "[fd00::1]",
            "[ff02::1]",
        ),
    ],
)
def test_addresses_that_are_not_public(server: Server, tmp_path: Path, host: str) -> None:
    with pytest.raises(SampleError, match=r"not a public address: data\.allow_private_urls") as caught:
        fetch(f"http://{host}:{server.server_port}/a.png", tmp_path, "f:1")
    assert caught.value.reason == "not fetched"
    assert not server.asked and not list(tmp_path.iterdir())


def test_addresses_that_are_public() -> None:
    assert all(map(is_public, ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")))


def test_redirects_are_checked_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    there = f"http://127.0.0.2:{server.server_port}/a.png"
    with pytest.raises(SampleError, match=r"127\.0\.0\.2, which is not a public address"):
        fetch(url(server, f"/to/{there}"), tmp_path, "f:1")
    assert list(server.asked) == [f"/to/{there}"]


def test_a_proxy_may_be_anywhere_but_what_is_behind_it_may_not(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    for scheme in ("http", "https"):
        with pytest.raises(SampleError, match=r"10\.0\.0\.1, which is not a public address"):
            fetch(f"{scheme}://10.0.0.1/a.png", tmp_path, "f:1")
    assert not server.asked
    with pytest.raises(SampleError, match="404"):
        fetch("http://name.invalid/a.png", tmp_path, "f:1")
    assert list(server.asked) == ["http://name.invalid/a.png"]


def test_private_urls_come_from_the_configuration_only() -> None:
    source = resolve_source("http://10.0.0.1/a.png", Path("/"), "f:1", access=MediaAccess("any"))
    assert source == "private+http://10.0.0.1/a.png" and is_url(source)
    for access in (MediaAccess("any"), PUBLIC_URLS):
        assert not is_url(resolve_source(source, Path(), "f:1", access=access))
