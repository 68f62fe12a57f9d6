"""A preview in colour, for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.style import Style
from rich.text import Text

from erniekit.display.text import visible
from erniekit.inspection.preview import KINDS, PieceKind, Preview, Stretch
from erniekit.inspection.preview_text import NEWLINE, counts, heading, summary, title

# Styles of context and of trained text. Trained text sets both colours, so that it is readable on any terminal.
_CONTEXT: dict[PieceKind, str] = {
    "template": "dim",
    "system": "",
    "tools": "yellow",
    "user": "",
    "media": "cyan",
    "tool_result": "yellow",
    "reasoning": "italic blue",
    "tool_call": "magenta",
    "answer": "",
    "text": "",
}
_TRAINED: dict[PieceKind, str] = {
    "template": "grey74",
    "reasoning": "italic light_sky_blue1",
    "tool_call": "plum1",
}
_TRAINED_BASE = Style.parse("bold bright_white on dark_green")
_LEGEND: tuple[PieceKind, ...] = (
    "template", "user", "media", "tools", "tool_result", "reasoning", "tool_call",
)  # fmt: skip


def style_of(kind: PieceKind, trained: bool) -> Style:
    """The style of a piece."""
    if trained:
        return _TRAINED_BASE + Style.parse(_TRAINED.get(kind, "bright_white"))
    return Style.parse(_CONTEXT[kind])


def print_preview(preview: Preview, console: Console) -> None:
    """Prints a preview. The terminal wraps long lines, so that no newline is added to the text that the model sees."""
    _print(console, Text(heading(preview)))
    _print(console, _legend())
    for sample in preview.samples:
        _print(console, Text())
        if sample.error is not None:
            _print(console, Text(title(sample), "bold"))
            error = visible(f"{sample.error.reason}: {sample.error.detail}")
            _print(console, Text("cannot be used: ", "bold red").append(error, "default"))
        for number, document in enumerate(sample.documents):
            if number:
                _print(console, Text())
            _print(console, Text(title(sample, document), "bold"))
            for stretch in document.stretches:
                if stretch.title:
                    _print(console, Text(f"-- {stretch.title}", "bold cyan"))
                _print(console, _text(stretch))
            _print(console, Text(f"\n{summary(preview, document)}"))
            for line in counts(document):
                _print(console, Text(line, "dim"))
            for note in preview.notes(sample, document):
                _print(console, Text(f"note: {note}", "yellow"))


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _legend() -> Text:
    text = Text("legend: ").append(" trained ", style_of("answer", True))
    for kind in _LEGEND:
        text.append("  ").append(KINDS[kind], style_of(kind, False))
    return text.append(f"  {NEWLINE}", "dim").append(" newline")


def _text(stretch: Stretch) -> Text:
    text = Text()
    for piece in stretch.pieces:
        style = style_of(piece.kind, piece.trained)
        for number, line in enumerate(visible(piece.text).split("\n")):
            if number:
                text.append(NEWLINE, style + Style(dim=True)).append("\n")
            text.append(line, style)
    return text
