"""A preview in colour."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from erniekit.data.encode.encoder import Encoder
from erniekit.inspection.preview import KINDS, Preview
from erniekit.inspection.preview_terminal import print_preview, style_of
from tests.unit.data.helpers import qa
from tests.unit.inspection.samples import TOOL_CHAT, preview_of


def printed(preview: Preview, width: int = 500) -> Text:
    """The output on a terminal, with its styles."""
    stream = io.StringIO()
    print_preview(preview, Console(file=stream, force_terminal=True, color_system="truecolor", width=width))
    return Text.from_ansi(stream.getvalue())


def background(text: Text, word: str) -> str | None:
    """The name of the colour behind the first occurrence of a word."""
    style = text.get_style_at_offset(Console(), text.plain.index(word))
    return style.bgcolor.name if style.bgcolor else None


def test_what_is_trained_has_a_background_and_context_has_none(
    tmp_path: Path, thinking_encoder: Encoder
) -> None:
    preview = preview_of(tmp_path / "a.jsonl", [TOOL_CHAT], thinking_encoder)
    text = printed(preview)
    trained = background(text, "seven<|end")
    assert trained is not None
    for word in ("<|end_of_sentence|>", "add⏎", '{"name": "add", "arguments"'):
        assert background(text, word) == trained
    for word in ("Be brief.", "one plus two?", "3⏎", "<tool_list>"):
        assert background(text, word) is None


def test_long_lines_are_not_broken(tmp_path: Path, vl_encoder: Encoder) -> None:
    words = "one two three four five six seven " * 10
    preview = preview_of(tmp_path / "a.jsonl", [qa(words)], vl_encoder)
    assert words in printed(preview, width=40).plain


def test_kinds_have_styles() -> None:
    styles = {kind: (str(style_of(kind, False)), str(style_of(kind, True))) for kind in KINDS}
    for context, trained in styles.values():
        assert "on dark_green" in trained
        assert "on " not in context
    for one, other in (("media", "tools"), ("tool_call", "reasoning"), ("template", "user")):
        assert styles[one][0] != styles[other][0]  # type: ignore[index]


def test_no_color_is_respected(tmp_path: Path, vl_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    preview = preview_of(tmp_path / "a.jsonl", [qa("hello")], vl_encoder)
    assert background(printed(preview), "seven") is None


def test_errors_and_control_characters(tmp_path: Path, vl_encoder: Encoder) -> None:
    preview = preview_of(tmp_path / "a.jsonl", [{"strange": 1}, qa("red \x1b[31mX")], vl_encoder)
    text = printed(preview)
    assert "cannot be used: unknown format: " in text.plain
    assert "red ␛[31mX" in text.plain
