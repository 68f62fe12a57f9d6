from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from erniekit.chat.console import HELP, ChatConsole, line_reader
from erniekit.chat.session import Chat
from erniekit.checkpoint.weights import load_model
from tests.unit.data.helpers import noise
from tests.unit.generation.helpers import make_model
from tests.unit.generation.scripted import END, INTERRUPT, TOOLS, Script, scripted_chat

CALL = '<tool_call>\n{"name": "time", "arguments": {"zone": "Asia"}}\n</tool_call>\n'
SPEED = re.compile(r"\(prompt \d+ tokens in \d+\.\d s, answer [\d,]+ tokens( at [\d.]+ tokens/s)?")


@pytest.fixture(scope="module")
def vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("console") / "model", "vl")


class Lines:
    """What the user types; None is Ctrl-C. `prompts`: what he was asked."""

    def __init__(self, lines: Sequence[str | None]) -> None:
        self.prompts: list[str] = []
        self._lines = list(lines)

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self._lines:
            raise EOFError
        line = self._lines.pop(0)
        if line is None:
            raise KeyboardInterrupt
        return line


def _run(chat: Chat, lines: Lines, terminal: bool = False) -> str:
    out = Console(
        file=io.StringIO(), force_terminal=terminal, width=40, color_system="standard" if terminal else None
    )
    ChatConsole(chat, out, lines).run()
    found = out.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(found, str)
    return found


def _chat(
    vl: Path, monkeypatch: pytest.MonkeyPatch, answers: Sequence[str], template: str = "ernie_vl"
) -> tuple[Chat, Script]:
    script = Script(vl, load_model(vl), template, answers)
    return scripted_chat(monkeypatch, script, TOOLS), script


def test_answers_come_in_lines_with_their_speed(vl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "One two three four five six " * 4
    chat, script = _chat(vl, monkeypatch, [long + END, "two", f"three{INTERRUPT}", END])
    lines = Lines(["One?", "", "   ", " /Two?", "three", "four", "/quit", "never asked"])
    out = _run(chat, lines).splitlines()
    assert out[0] == long
    assert SPEED.fullmatch(out[1].removesuffix(")"))
    assert out[2] == "two" and out[3].endswith(", cut off at --max-new-tokens)")
    assert out[4] == "three" and out[5].endswith(", interrupted)")
    assert out[6].startswith("(prompt") and out[7] == "error: this turn is dropped: the model gave no answer"
    assert len(out) == 8 and len(script.prompts) == 4
    assert "User: /Two?" in script.prompts[1]
    assert set(lines.prompts) == {"> "}


def test_reasoning_is_dim_on_a_terminal_and_named_elsewhere(
    vl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [f"So it is.\n</think>\n\nseven{END}", f"hm{END}"]
    chat, _ = _chat(vl, monkeypatch, answers, "ernie_vl_thinking")
    out = _run(chat, Lines(["One?", "Two?"])).splitlines()
    assert out[:4] == ["[reasoning]", "So it is.", "[answer]", "seven"]
    assert out[5:7] == ["[reasoning]", "hm"] and out[8].startswith("error: this turn is dropped")
    chat, _ = _chat(vl, monkeypatch, answers, "ernie_vl_thinking")
    shown = _run(chat, Lines(["One?"]), terminal=True)
    dim = "".join(re.findall(r"\x1b\[2m(.*?)\x1b\[0m", shown))
    assert dim.startswith("So it is.(prompt")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert plain.startswith("So it is.\n\nseven\n(prompt") and "[reasoning]" not in plain


def test_the_user_runs_the_tools(vl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = CALL + CALL.replace("Asia", "Rome")
    chat, script = _chat(
        vl, monkeypatch, [f"Look:{two}{END}", CALL + END, f"noon{END}", two + END, f"bye{END}"]
    )
    lines = Lines(["Time?", "12:00", "", "13:00", "Again?", "", "", "Bye"])
    out = _run(chat, lines)
    assert lines.prompts[:4] == ["> ", *["result of time (empty: none)> "] * 3]
    assert out.count('[calls time {"zone": "Asia"}]\n') == 3
    assert 'Look:\n[calls time {"zone": "Asia"}]\n[calls time {"zone": "Rome"}]\n(prompt' in out
    # Each call has its own result, which may be empty.
    assert "<tool_output>\n12:00\n</tool_output>\n<tool_output>\n\n</tool_output>" in script.prompts[1]
    assert "\n13:00\n</tool_output>" in script.prompts[2]
    # Without any result the chat goes on with the user.
    assert len(script.prompts) == 5 and "User: Bye" in script.prompts[4]


def test_a_call_that_cannot_be_read_is_shown(vl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, _ = _chat(vl, monkeypatch, [f"a{CALL.replace('Asia', 'A')[:-17]}\n</tool_call>{END}"])
    lines = Lines(["Time?"])
    out = _run(chat, lines)
    assert "a\n[a tool call that cannot be parsed (not valid JSON: " in out
    assert lines.prompts == ["> ", "> "]


def test_commands(vl: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image, saved = tmp_path / "an image.png", tmp_path / "saved.jsonl"
    noise(56, 56).save(image)
    chat, script = _chat(vl, monkeypatch, [f"seven{END}", f"two{END}", f"three{END}"])
    lines = [
        "/help",
        f"/image {image}",
        f"/image '{image}'",
        f"/image {tmp_path}/gone.png",
        "/image",
        "/system  Be brief. ",
        "/system <|end_of_sentence|>",
        "Which?",
        f"/save {saved}",
        f"/save {tmp_path}/gone/saved.jsonl",
        "/nothing more",
        "/reset ",
        "/save x.jsonl",
        "And?",
        "/system",
        "/reset",
        "Last?",
        "/exit",
    ]
    out = _run(chat, Lines(lines))
    assert out.startswith(HELP + "\n")
    shown = [line for line in out.removeprefix(HELP + "\n").splitlines() if not line.startswith("(")]
    assert shown == [
        "attached to the next message (1 in all)",
        "attached to the next message (2 in all)",
        f"error: no such image: {tmp_path}/gone.png",
        "error: /image needs a FILE",
        "system message changed",
        "error: message 1 (system) contains <|end_of_sentence|>, which only the template may write",
        "seven",
        f"appended to {saved}",
        f"error: {tmp_path}/gone/saved.jsonl: cannot be written: No such file or directory",
        "error: unknown command /nothing; /help lists the commands",
        "chat cleared, but for the system message",
        "error: the chat is empty: there is nothing to save",
        "two",
        "system message removed",
        "chat cleared",
        "three",
    ]
    assert "Be brief.\nUser: Picture 1:" in script.prompts[0] and "Picture 2:" in script.prompts[0]
    assert "Be brief.\nUser: And?" in script.prompts[1] and "Which?" not in script.prompts[1]
    assert "Be brief." not in script.prompts[2]
    (record,) = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [message["role"] for message in record["messages"]] == ["system", "user", "assistant"]


def test_interrupts_at_the_prompt(vl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, script = _chat(vl, monkeypatch, [CALL + END, f"two{END}"])
    out = _run(chat, Lines([None, "One?", None, "Two?"]), terminal=True)
    assert "(/quit or Ctrl-D to quit)" in out and "two" in out and len(script.prompts) == 2
    with pytest.raises(KeyboardInterrupt):
        _run(chat, Lines([None]))


def test_nothing_steers_the_terminal(vl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, _ = _chat(vl, monkeypatch, [f"[red]a\x1b]0;b{END}"])
    assert _run(chat, Lines(["One?"])).startswith("[red]a␛]0;b\n")


def test_lines_from_a_file_may_have_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(
        io.BytesIO("数\r\nb\xff\n".encode("latin-1", "replace") + b"\xff end"), encoding="utf-8"
    )
    monkeypatch.setattr(sys, "stdin", stream)
    read = line_reader()
    assert [read("> "), read("> "), read("> ")][1:] == ["b�", "� end"]
    with pytest.raises(EOFError):
        read("> ")
