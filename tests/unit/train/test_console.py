"""Plain lines are few and complete; the bar ends where the run ends."""

import io
import re
from typing import Any

import pytest

from erniekit.train import console as module
from erniekit.train.console import PlainConsole, TerminalConsole, clock, describe_step, make_console

FIGURES = {
    "train/loss": 1.23456,
    "train/tokens_per_second": 12345.6,
    "train/learning_rate": 1e-5,
    "train/gradient_norm": 2.3456,
}
STEP = "loss 1.2346  lr 1.00e-05  grad norm 2.35  epoch 0.50  12,346 tokens/s"


def test_plain_lines_are_throttled_but_first_and_last_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    console = PlainConsole()
    console.begin(2, 20)
    for done in range(3, 21):
        now[0] += 1.0
        console.step(done, FIGURES, 0.5)
    console.end()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["3/20", "8/20", "13/20", "18/20", "20/20"]
    assert lines[0] == f"step 3/20  {STEP}  0:17 left"
    assert lines[-1].endswith("0:00 left")


def test_lines_scroll_above_the_bar_and_the_bar_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    out = io.StringIO()

    def console(**options: Any) -> Console:
        return Console(file=out, force_terminal=True, width=120, **options)

    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("rich.console.Console", console)
    console = TerminalConsole()
    console.log("[before]")
    console.begin(0, 40)
    for done in range(1, 41):
        now[0] += 1.0
        console.step(done, FIGURES, 0.5)
    console.end()
    console.log("after")
    text = out.getvalue()
    assert "[before]" in text and "40/40" in text
    lines = re.findall(r"step (\d+)/40  loss .* left", text)
    assert lines == ["1", "6", "11", "16", "21", "26", "31", "36", "40"]
    # Nothing of the bar is left below the last line: the screen ends with it and what is printed later.
    erased = text.rindex("\x1b[2K")
    assert text[erased:].removeprefix("\x1b[2K").strip() == "after"


def test_no_terminal_means_plain_lines() -> None:
    assert isinstance(make_console(), PlainConsole)


def test_other_ranks_print_what_concerns_them_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """`srun` shows the output of all ranks in one terminal."""
    console = make_console(3)
    console.begin(0, 1)
    console.log("model: loading")
    console.step(1, FIGURES, 0.5)
    console.warn("skipped: a.jsonl:3: no such image")
    console.end()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "rank 3: skipped: a.jsonl:3: no such image\n")


def test_mfu_and_preferences_are_shown_where_they_are_logged() -> None:
    assert describe_step(FIGURES, 0.5) == STEP
    assert describe_step(FIGURES | {"train/mfu": 0.4123}, 0.5) == f"{STEP}  MFU 41.2%"
    pairs = FIGURES | {"rewards/accuracy": 0.875, "rewards/margin": 1.5}
    assert describe_step(pairs, 0.5) == STEP.replace("  lr", "  accuracy 87.5%  margin 1.500  lr")


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 3599, 3600, 7325)] == ["0:00", "1:00", "59:59", "1:00:00", "2:02:05"]
