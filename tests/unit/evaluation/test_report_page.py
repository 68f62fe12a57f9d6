"""The HTML page of an evaluation: safe for any data and answers, and complete."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from erniekit.data.chat.families import TEMPLATES
from erniekit.evaluation import report_page
from erniekit.evaluation.dataset import EvalSample
from erniekit.evaluation.evaluate import Prediction
from erniekit.evaluation.report import EvalSettings
from erniekit.evaluation.report_page import ReportPage
from erniekit.generation.answer import ToolCall
from erniekit.generation.sampling import Sampling
from tests.unit.data.helpers import encoded, noise
from tests.unit.elements import Elements
from tests.unit.evaluation.evaluations import BROKEN, answered, evaluation_of, image

HOSTILE = "</ins></div></pre><script>alert(1)</script><img src=x onerror=alert(2)>\" onclick='x' &lt;b&gt; {{ 7 * 7 }}"
TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "footer", "h1", "h2", "h3", "dl", "div", "dt",
    "dd", "pre", "section", "span", "b", "p", "details", "summary", "figure", "figcaption", "img", "input", "label",
    "ins", "del", "br",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "name", "content", "http-equiv", "class", "src", "width", "height", "alt", "open", "type", "id",
    "for", "checked",
}  # fmt: skip


class Page(Elements):
    """A page's elements, the text of each card, and the marked differences."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cards: list[str] = []
        self.marked: list[tuple[str, str]] = []
        self.read(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        if tag == "section":
            self.cards.append("")
        if tag in ("ins", "del"):
            self.marked.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if any(tag == "section" for tag, _ in self.open):
            self.cards[-1] += data
        if self.open and self.open[-1][0] in ("ins", "del"):
            self.marked[-1] = (self.marked[-1][0], self.marked[-1][1] + data)

    def images(self) -> list[Image.Image]:
        """The images, decoded."""
        found = []
        for tag, attributes in self.elements:
            if tag == "img":
                head, _, data = str(attributes["src"]).partition(",")
                assert head == "data:image/jpeg;base64"
                found.append(Image.open(io.BytesIO(base64.b64decode(data))))
        return found


def page_of(
    *answers: tuple[EvalSample, Prediction], model: str = "runs/x", sampling: Sampling | None = None
) -> str:
    page = ReportPage(TEMPLATES["ernie_vl"])
    for sample, prediction in answers:
        page.add(sample, prediction)
    return page.render(evaluation_of(*answers), EvalSettings(model, "ernie", sampling or Sampling(64)))


@pytest.mark.parametrize(
    "where", ["prompt", "expected", "answer", "reasoning", "id", "model", "call", "raw", "error"]
)
def test_neither_data_nor_model_can_write_html(tmp_path: Path, where: str) -> None:
    texts = {name: HOSTILE if where == name else "seven" for name in ("prompt", "reasoning")}
    calls: tuple[ToolCall, ...] = ()
    if where == "call":
        calls = (ToolCall(HOSTILE, {HOSTILE: HOSTILE}, "", None),)
    elif where in ("raw", "error"):
        calls = (ToolCall("", None, HOSTILE, HOSTILE),)
    item = answered(
        f"{HOSTILE if where == 'id' else 'a'}:1",
        HOSTILE if where == "expected" else "seven",
        HOSTILE if where == "answer" else "eight",
        calls=calls,
        media=(image(tmp_path / HOSTILE.replace("/", "")),) if where == "raw" else (),
        **texts,
    )
    html = page_of(item, answered("b:1", "x", "x"), model=HOSTILE if where == "model" else "m")
    page = Page(html)
    assert {tag for tag, _ in page.elements} <= TAGS
    assert {name for _, attributes in page.elements for name in attributes} <= ATTRIBUTES
    assert "<script" not in html
    if where not in ("model", "call"):
        assert HOSTILE in page.cards[0]


def test_the_page_needs_nothing_else_and_has_no_script(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(300, 600)))
    media = (image(tmp_path / "a.png"), image(encoded(noise(40, 40))))
    html = page_of(answered("a:1", "http://example.org/x.js", "no", media=media))
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "base", "form"}
    assert [shown.size for shown in page.images()] == [(160, 80), (40, 40)]
    assert "url(" not in html and "@import" not in html
    policy = next(attributes for _, attributes in page.elements if "http-equiv" in attributes)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "prefers-color-scheme: dark" in html


def test_an_image_that_cannot_be_shown_says_so_and_many_are_cut(tmp_path: Path) -> None:
    media = (image(tmp_path / "gone.png"), *[image(encoded(noise(40, 40)))] * 8)
    page = Page(page_of(answered("a:1", "x", "y", media=media)))
    assert "no such image" in page.cards[0] and "3 of the 9 images and videos are not shown" in page.cards[0]
    assert len(page.images()) == 5


def test_what_differs_is_marked() -> None:
    page = Page(
        page_of(
            answered("a:1", "It is a red circle.", "It is a blue circle."),
            answered("a:2", "七个苹果", "八个苹果"),
        )
    )
    assert page.marked == [("ins", "red"), ("del", "blue"), ("ins", "七"), ("del", "八")]
    assert "It is a red circle." in page.cards[0] and "It is a blue circle." in page.cards[0]


def test_calls_notes_scores_and_settings_are_shown() -> None:
    right = ToolCall("add", {"b": 1, "a": "数"}, "", None)
    calls = {"calls": (right, BROKEN), "expected_calls": (right,)}
    item = answered("a:1", "", "", **calls, reasoning="two thoughts", ended=False, call_match=0.0)
    html = page_of(item, answered("a:2", "x", "x", token_f1=0.25), sampling=Sampling(9, 0.7, 0.9, seed=5))
    page = Page(html)
    for text in ('call add {"a": "数", "b": 1}', 'call {"name": "add"', "call 2 cannot be read: cut off"):
        assert text in page.cards[0]
    assert "two thoughts" in page.cards[0] and "cut off at the limit" in page.cards[0]
    assert "token_f1 0.25" in page.cards[1] and "exact_match 1" in page.cards[1]
    for value in ("<dd>0.7</dd>", "<dd>0.9</dd>", "<dd>5</dd>", "<dd>ernie</dd>", "<dd>50.0%</dd>"):
        assert value in html


def test_right_and_wrong_answers_are_marked_and_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "MOST_SHOWN", {"wrong": 3, "differs": 1, "right": 2})
    answers = [answered(f"a:{n}", "x", "x" if n % 2 else "y") for n in range(10)]
    long = "A sentence of more than a few words."
    answers += [answered(f"b:{n}", long, "Another one.") for n in range(2)]
    html = page_of(*answers)
    page = Page(html)
    classes = [attributes["class"] for tag, attributes in page.elements if tag == "section"]
    assert classes == ["card wrong", "card right", "card wrong", "card right", "card wrong", "card differs"]
    radios = [attributes["id"] for tag, attributes in page.elements if tag == "input"]
    labels = [attributes["for"] for tag, attributes in page.elements if tag == "label"]
    assert radios == labels == ["show-all", "show-wrong", "show-differs", "show-right"]
    assert "#show-differs:checked ~ main .card:not(.differs) { display: none; }" in html
    assert "wrong 5" in html and "differs 2" in html and "right 5" in html
    assert "the first 3 wrong, 1 differing and 2 right answers" in html
    assert "on this page" not in page_of(*answers[:3])


def test_a_prompt_is_shown_as_a_chat_and_raw_on_demand() -> None:
    media = (image(encoded(noise(40, 40))),)
    page = Page(page_of(answered("a:1", "seven", "eight", prompt="Which digit?", media=media)))
    bubbles = [
        attributes["class"] for _, attributes in page.elements if "bubble" in (attributes.get("class") or "")
    ]
    assert bubbles == ["bubble user"]
    raw = "raw promptUser: Picture 1:<image>Which digit?\nAssistant: "
    assert page.cards[0].count("Which digit?") == 2 and page.cards[0].rstrip().endswith(raw.rstrip())
    assert [attributes for tag, attributes in page.elements if tag == "details"] == [{"open": None}, {}]


def test_control_characters_are_shown(tmp_path: Path) -> None:
    html = page_of(answered("a:1", "a\x1b[31m\u202eb", "c"))
    assert "\x1b" not in html and "\u202e" not in html and "␛" in html
