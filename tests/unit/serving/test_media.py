"""Images of requests that are URLs: downloaded for the request, and no answer tells what the server can reach."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from erniekit.data.chat.conversation import Conversation, ImagePart, SampleError
from erniekit.data.media.access import PUBLIC_URLS
from erniekit.serving import limits as limits_of
from erniekit.serving import media
from erniekit.serving.conversations import to_conversation
from erniekit.serving.fields import RequestError
from erniekit.serving.media import has_urls, with_media
from tests.unit.data.helpers import encoded, noise
from tests.unit.data.videos import HEIGHT, WIDTH, video
from tests.unit.generation.scripted import END
from tests.unit.serving.conftest import ASKED, HANGS, Served

PNG = encoded(noise(56, 56))


def chat(*urls: str) -> Conversation:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]
    return to_conversation(messages, base_dir=Path(), sample_id="request", access=PUBLIC_URLS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Downloads answer with an image; a host says how they fail."""
    found: list[str] = []

    def download(url: str, file: IO[bytes], sample_id: str, *, max_bytes: int, timeout: float) -> None:
        found.append(url)
        why = re.match(r"http://(\w+)\.invalid/", url)
        if why:
            raise SampleError(sample_id, "not fetched", f"cannot fetch {url}: {why[1]}")
        if len(PNG) > max_bytes:
            raise SampleError(sample_id, "not fetched", f"cannot fetch {url}: larger")
        file.write(PNG)

    monkeypatch.setattr(media, "download", download)
    return found


def test_urls_become_bytes(asked: list[str]) -> None:
    conversation = chat("http://a/1.png", "http://a/1.png", "http://a/2.png")
    assert has_urls(conversation)
    found, size = with_media(conversation)
    assert asked == ["http://a/1.png", "http://a/2.png"] and size == 2 * len(PNG)
    assert found.messages[0].parts[:3] == (ImagePart(PNG),) * 3 and not has_urls(found)


def test_all_of_a_request_are_bounded(asked: list[str]) -> None:
    with pytest.raises(RequestError, match=r"a/2\.png cannot be used"):
        with_media(chat("http://a/1.png", "http://a/2.png"), max_bytes=len(PNG) + 1)
    asked.clear()
    with pytest.raises(RequestError, match="the request has 65 URLs, more than 64"):
        with_media(chat(*(f"http://a/{number}" for number in range(65))))
    assert not asked


def test_answers_do_not_tell_why_but_the_log_does(start: Callable[..., Served], asked: list[str]) -> None:
    served = start(access=PUBLIC_URLS, answers=[f"seven{END}"])

    def ask(host: str) -> tuple[int, str, str]:
        part = {"type": "image_url", "image_url": {"url": f"http://{host}/a.png"}}
        status, answer = served.completion({**ASKED, "messages": [{"role": "user", "content": [part]}]})
        message = answer["error"]["message"] if "error" in answer else ""
        return status, message.replace(host, "HOST"), served.lines.get(timeout=HANGS)

    refused, found = ask("refused.invalid"), ask("private.invalid")
    assert refused[:2] == found[:2] and refused[0] == 400
    assert refused[1].startswith("http://HOST/a.png cannot be used")
    assert ": refused" in refused[2] and ": private" in found[2]
    assert ask("a")[0] == 200


def test_a_real_download_is_refused_on_this_machine(start: Callable[..., Served]) -> None:
    served = start(access=PUBLIC_URLS)
    for url in (f"{served.url}/health", f"http://localhost:{served.port}/health"):
        part = {"type": "image_url", "image_url": {"url": url}}
        status, answer = served.completion({**ASKED, "messages": [{"role": "user", "content": [part]}]})
        assert status == 400 and "at a public address" in answer["error"]["message"]
        assert "not a public address" in served.lines.get(timeout=HANGS)


def test_what_takes_long_to_decode_is_refused(
    start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start(answers=[f"seven{END}"] * 2)
    image, clip = (
        {"type": kind, kind: {"url": f"data:{media};base64,{base64.b64encode(content).decode()}"}}
        for kind, media, content in (("image_url", "image/png", PNG), ("video_url", "video/mp4", video(20)))
    )

    def ask(*parts: object, **limits: int) -> tuple[int, str]:
        for name, value in limits.items():
            monkeypatch.setattr(limits_of, name, value)
        status, answer = served.completion({**ASKED, "messages": [{"role": "user", "content": parts}]})
        return status, answer["error"]["message"] if "error" in answer else ""

    assert ask(image, image, _MAX_PIXELS=2 * 56 * 56) == (200, "")
    status, message = ask(image, image, image)
    assert status == 400 and message.startswith("its images have more than 6,272 pixels together, the limit")
    assert ask(clip, _MAX_PIXELS=20 * HEIGHT * WIDTH, _VIDEO_PIXELS=1) == (200, "")
    assert ask(clip, _MAX_PIXELS=20 * HEIGHT * WIDTH - 1)[0] == 400
