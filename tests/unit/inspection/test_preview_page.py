"""The HTML page of a preview: safe for any data, and with the text that the model sees."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from erniekit.data.encode.encoder import Encoder
from erniekit.inspection.preview_page import render_preview
from tests.unit.data.helpers import data_uri, encoded, noise, qa
from tests.unit.elements import Elements
from tests.unit.inspection.samples import TOOL_CHAT, preview_of

HOSTILE = "</span></div><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='x' &lt;b&gt; {{ 7 * 7 }}"
TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "footer", "h1", "h2", "h3", "dl", "div", "dt",
    "dd", "section", "span", "b", "p", "br", "details", "summary", "figure", "figcaption", "img", "ins", "del",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "name", "content", "http-equiv", "class", "aria-label", "style", "title", "src", "width",
    "height", "alt", "open",
}  # fmt: skip


class Page(Elements):
    """A page's elements, the raw text of each document, its bubbles as (class, text), and the marked differences."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.bubbles: list[tuple[str, str]] = []
        self.marked: list[tuple[str, str]] = []
        self.read(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        if tag == "div" and dict(attrs).get("class") == "words":
            self.words.append("")
        if "bubble" in (classes := (dict(attrs).get("class") or "").split()):
            self.bubbles.append((classes[1], ""))
        if tag in ("ins", "del"):
            self.marked.append((tag, ""))

    def handle_data(self, data: str) -> None:
        inside = {name for _, classes in self.open for name in classes.split()}
        if "words" in inside and self.open[-1] != ("span", "n") and self.open[-1][0] != "h3":
            self.words[-1] += data
        if "said" in inside:
            role, text = self.bubbles[-1]
            self.bubbles[-1] = (role, text + data)
        if self.open and self.open[-1][0] in ("ins", "del"):
            self.marked[-1] = (self.marked[-1][0], self.marked[-1][1] + data)


def page_of(path: Path, records: list[Any], encoder: Encoder, **settings: Any) -> tuple[str, Page]:
    html = render_preview(preview_of(path, records, encoder, **settings))
    return html, Page(html)


@pytest.mark.parametrize("where", ["user", "answer", "system", "tools", "call", "result", "path", "error"])
def test_data_cannot_write_html(tmp_path: Path, thinking_encoder: Encoder, where: str) -> None:
    chat = {key: list(value) for key, value in TOOL_CHAT.items()}
    messages = chat["messages"] = [dict(message) for message in chat["messages"]]
    if where == "tools":
        chat["tools"] = [{"type": "function", "function": {"name": "add", "description": HOSTILE}}]
    elif where == "call":
        call = {"type": "function", "function": {"name": HOSTILE, "arguments": "{}"}}
        messages[2] = {**messages[2], "tool_calls": [call], "reasoning_content": HOSTILE}
    elif where in ("path", "error"):
        name = HOSTILE.replace("/", "") + ".png"
        if where == "path":
            (tmp_path / name).write_bytes(encoded(noise(60, 60)))
        messages[1]["content"] = [{"type": "image", "image": name}]
    else:
        messages[{"system": 0, "user": 1, "result": 3, "answer": 4}[where]]["content"] = HOSTILE
    html, page = page_of(tmp_path / "a.jsonl", [chat], thinking_encoder)
    assert {tag for tag, _ in page.elements} <= TAGS
    assert {name for _, attributes in page.elements for name in attributes} <= ATTRIBUTES
    assert "<script" not in html
    if where in ("user", "answer", "system", "result"):
        assert HOSTILE in page.words[0]
        assert HOSTILE in "".join(text for _, text in page.bubbles)


def test_the_text_is_what_the_model_sees(tmp_path: Path, thinking_encoder: Encoder) -> None:
    preview = preview_of(tmp_path / "a.jsonl", [TOOL_CHAT, {"text": " two\n  lines\t"}], thinking_encoder)
    page = Page(render_preview(preview))
    documents = [document for sample in preview.samples for document in sample.documents]
    assert page.words == ["".join(piece.text for piece in document.pieces) for document in documents]


def test_a_chat_is_shown_as_bubbles_without_the_template(tmp_path: Path, thinking_encoder: Encoder) -> None:
    _, page = page_of(tmp_path / "a.jsonl", [TOOL_CHAT, {"text": "plain"}], thinking_encoder)
    tools, call = json.dumps(TOOL_CHAT["tools"]), '{"name": "add", "arguments": {"a": 1}}'
    assert sorted(page.bubbles[:2]) == [("system", "Be brief."), ("tools", tools)]
    assert page.bubbles[2:] == [
        ("user", "one plus two?"),
        ("assistant", "add\nthem" + call),
        ("tool", "3"),
        ("assistant", "seven"),
        ("text", "plain"),
    ]


def test_messages_of_one_role_stay_apart_and_media_is_in_its_message(
    tmp_path: Path, vl_encoder: Encoder
) -> None:
    image = {"type": "image", "image": data_uri(noise(60, 60))}
    chat = {
        "messages": [
            {"role": "user", "content": [image]},
            {"role": "user", "content": [{"type": "text", "text": "seven"}, image]},
            {"role": "assistant", "content": "one"},
            {"role": "assistant", "content": "two"},
        ]
    }
    html, page = page_of(tmp_path / "a.jsonl", [chat], vl_encoder)
    roles = [role for role, _ in page.bubbles]
    assert roles == ["user", "user", "assistant", "assistant"]
    assert [text for _, text in page.bubbles] == ["", "seven", "one", "two"]
    assert html.count("<img") == 2


def test_the_page_needs_nothing_else_and_has_no_script(tmp_path: Path, vl_encoder: Encoder) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(300, 600)))
    record = qa([{"type": "image", "image": "a.png"}, {"type": "text", "text": "http://example.org/x.js"}])
    html, page = page_of(tmp_path / "a.jsonl", [record], vl_encoder, max_length=5000)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "base", "form"}
    sources = [attributes["src"] for _, attributes in page.elements if "src" in attributes]
    assert len(sources) == 1
    assert all(source is not None and source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "url(" not in html and "@import" not in html
    policy = next(attributes for _, attributes in page.elements if "http-equiv" in attributes)
    assert "default-src 'none'" in str(policy["content"])
    assert "prefers-color-scheme: dark" in html


def test_thumbnails_are_small_and_of_a_video_there_are_three(tmp_path: Path, vl_encoder: Encoder) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(300, 600)))
    shades = [0, 50, 100, 150, 200, 250]
    frames = []
    for shade in shades:
        frames.append(f"{shade}.png")
        (tmp_path / frames[-1]).write_bytes(encoded(Image.new("RGB", (100, 60), (shade,) * 3)))
    content = [{"type": "image", "image": "a.png"}, {"type": "video", "video": frames}]
    _, page = page_of(tmp_path / "a.jsonl", [qa(content)], vl_encoder, max_length=5000)
    images = []
    for tag, attributes in page.elements:
        if tag == "img":
            data = base64.b64decode(str(attributes["src"]).partition(",")[2])
            images.append(Image.open(io.BytesIO(data)))
            assert (str(images[-1].width), str(images[-1].height)) == (
                attributes["width"],
                attributes["height"],
            )
    assert [image.format for image in images] == ["JPEG"] * 4
    assert images[0].size == (160, 80)
    shown = [image.convert("L").getpixel((50, 30)) for image in images[1:]]
    assert shown == pytest.approx([0, 100, 250], abs=4)


def test_an_image_that_cannot_be_decoded_says_so(tmp_path: Path, vl_encoder: Encoder) -> None:
    data = encoded(noise(200, 200))
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    record = qa([{"type": "image", "image": "cut.png"}, {"type": "text", "text": "what?"}])
    html, page = page_of(tmp_path / "a.jsonl", [record], vl_encoder)
    assert "damaged image" in html and not page.marked
    assert 'class="broken"' in html


def test_system_and_tools_can_be_folded_and_long_ones_are(tmp_path: Path, vl_encoder: Encoder) -> None:
    chat = {
        "messages": [{"role": "system", "content": "seven " * 100}, *qa("x")["messages"]],
        "tools": TOOL_CHAT["tools"],
    }
    _, page = page_of(tmp_path / "a.jsonl", [chat], vl_encoder, max_length=5000)
    details = [attributes for tag, attributes in page.elements if tag == "details"]
    # The last one is the raw text.
    assert ["open" in attributes for attributes in details] == [True, False, False]


def test_the_footer_counts_tokens_by_kind(tmp_path: Path, vl_encoder: Encoder) -> None:
    preview = preview_of(tmp_path / "a.jsonl", [qa("hello there")], vl_encoder)
    (document,) = preview.samples[0].documents
    (counts,) = re.findall(r'<p class="counts">tokens: (.*)</p>', render_preview(preview))
    assert sum(int(number) for number in re.findall(r"[a-z] (\d+)", counts)) == document.tokens
    answer = next(count for count in document.counts if count.kind == "answer")
    assert f"answer {answer.tokens} ({answer.tokens} trained)" in counts and "user" in counts


def test_a_document_that_is_too_long_and_a_sample_that_fails(tmp_path: Path, vl_encoder: Encoder) -> None:
    html, page = page_of(
        tmp_path / "a.jsonl", [qa("seven " * 100), {"strange": 1}], vl_encoder, max_length=50
    )
    assert 'class="length over"' in html
    assert "longer than data.max_length" in html
    assert "cannot be used: unknown format" in html
    assert len(page.words) == 1
