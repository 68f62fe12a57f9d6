"""Progress: a bar on a terminal, few lines elsewhere, and Ctrl-C at the next report."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import pytest

from erniekit.display import progress
from erniekit.display.progress import log_progress, show_file_progress, show_progress


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float]) -> None:
    clock = iter(seconds)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))


def test_lines_are_few(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, [0.0, 1.0, 6.0, 7.0, 8.0])
    with show_progress() as report:
        for done in (0, 2, 4, 6, 8):
            report("answers", done, 8)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["answers: 4 of 8 samples, about 6 s left", "answers: 8 of 8 samples in 8.0 s"]


def test_lines_of_a_phase_count_from_its_first_report(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, [0.0, 100.0, 101.0, 110.0, 120.0])
    lines: list[str] = []
    report = log_progress(lines.append, "bytes", seconds=10.0)
    report("a.jsonl", 0, 10)
    for done in (0, 1, 5, 10):
        report("b.jsonl", done, 10)
    assert lines == ["b.jsonl: 50%, about 10 s left"]


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with show_progress() as report:
        report("loss", 3, 3)
        report("answers", 1, 4)
    out = capsys.readouterr().out
    assert "loss" in out and "3/3" in out and "answers" in out and "1/4" in out


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_bar_of_files_is_on_the_error_stream_of_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    with show_file_progress() as report:
        report("checking", 1000, 2000)
        report("checking", 2000, 2000)
    out, err = capsys.readouterr()
    assert not out and ("checking" in err and "2.0/2.0 kB" in err) == is_terminal and bool(err) == is_terminal


def test_ctrl_c_ends_the_work_at_the_next_report() -> None:
    before, went_on = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), show_progress() as report:
        report("loss", 0, 3)
        os.kill(os.getpid(), signal.SIGINT)
        went_on = True
        report("loss", 1, 3)
        pytest.fail("Ctrl-C was lost")
    assert went_on and signal.getsignal(signal.SIGINT) == before
    with pytest.raises(KeyboardInterrupt), show_progress():
        os.kill(os.getpid(), signal.SIGINT)
