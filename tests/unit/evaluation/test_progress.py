from __future__ import annotations

import os
import signal
import sys

import pytest

from erniekit.evaluation import progress
from erniekit.evaluation.progress import show_progress


def test_plain_lines_are_few(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 6.0, 7.0, 8.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with show_progress() as report:
        for done in (0, 2, 4, 6, 8):
            report("answers", done, 8)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "answers: 4 of 8 samples after 6.0 s, about 6 s left",
        "answers: 8 of 8 samples after 8.0 s",
    ]


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with show_progress() as report:
        report("loss", 3, 3)
        report("answers", 1, 4)
    out = capsys.readouterr().out
    assert "loss" in out and "3/3" in out and "answers" in out and "1/4" in out


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
