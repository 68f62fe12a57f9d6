"""Plain lines are few and complete; the bar ends where the run ends."""

import io
from typing import Any

import pytest

from erniekit.train import console as module
from erniekit.train.console import PlainConsole, TerminalConsole, clock, describe_step, make_console

FIGURES = {"train/loss": 1.23456, "train/tokens_per_second": 12345.6}


def test_plain_lines_are_throttled_but_first_and_last_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    console = PlainConsole()
    console.begin(2, 20)
    for done in range(3, 21):
        now[0] += 1.0
        console.step(done, FIGURES)
    console.end()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["3/20", "8/20", "13/20", "18/20", "20/20"]
    assert lines[0] == "step 3/20  loss 1.2346  12,346 tokens/s  0:17 left"
    assert lines[-1].endswith("0:00 left")


def test_bar_moves_and_text_goes_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    out = io.StringIO()

    def console(**options: Any) -> Console:
        return Console(file=out, force_terminal=True, width=100, **options)

    monkeypatch.setattr("rich.console.Console", console)
    console = TerminalConsole()
    console.log("[before]")
    console.begin(0, 4)
    console.step(3, FIGURES)
    console.log("between")
    console.end()
    text = out.getvalue()
    assert "[before]" in text and "between" in text
    assert "3/4" in text and "loss 1.2346" in text


def test_no_terminal_means_plain_lines() -> None:
    assert isinstance(make_console(), PlainConsole)


def test_mfu_is_shown_where_it_is_logged() -> None:
    assert describe_step(FIGURES | {"train/mfu": 0.4123}) == "loss 1.2346  12,346 tokens/s  MFU 41.2%"


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 3599, 3600, 7325)] == ["0:00", "1:00", "59:59", "1:00:00", "2:02:05"]
