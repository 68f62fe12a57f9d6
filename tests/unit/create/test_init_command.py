from __future__ import annotations

import sys
from pathlib import Path

import pytest

from erniekit.cli.main import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of the command line."""
    monkeypatch.setattr(sys, "argv", ["erniekit", "init", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_makes_a_model_and_says_what(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, text_file: Path
) -> None:
    texts = ["--tokenizer-text", str(text_file), "--tokenizer-text", str(text_file)]
    options = ["--output", str(tmp_path / "m"), "--vocab-size", "400", "--seed", "5", "--set", "moe_k=3"]
    assert run(monkeypatch, "tiny-moe", *texts, *options) == 0
    assert "tiny-moe, 2,074,384 parameters (8.3 MB)" in capsys.readouterr().out
    assert '"moe_k": 3' in (tmp_path / "m" / "config.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny-vll",), "error: there is no shape 'tiny-vll'; did you mean 'tiny-vl'?"),
        (("tiny-vl", "--set", "moe_kk=1"), "error: --set moe_kk=1: shape tiny-vl has no key 'moe_kk'"),
        (("tiny-vl", "--vocab-size", "100"), "error: a vocabulary of 100 is too small"),
    ],
)
def test_mistakes_are_one_line_and_status_1(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    text_file: Path,
) -> None:
    fixed = ("--output", str(tmp_path / "m"), "--tokenizer-text", str(text_file))
    assert run(monkeypatch, *arguments, *fixed) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "m").exists()


def test_missing_options_are_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "tiny-vl") == 2
    assert "--output" in capsys.readouterr().err


def test_help_shows_examples(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    assert "erniekit init tiny-vl --output" in capsys.readouterr().out
