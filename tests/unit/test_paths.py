"""Paths that no shell has expanded."""

from pathlib import Path

import pytest

from erniekit.cli.main import build_app
from erniekit.errors import ConfigError
from erniekit.paths import escape_path, expand_argument, expand_path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    return tmp_path


def test_arguments(home: Path) -> None:
    found = expand_argument([Path("~/a"), Path("b"), "~/text"])
    assert found == [home / "a", Path("b"), "~/text"]
    assert expand_argument(Path("${HOME}/x/../y")) == home / "x/../y"
    with pytest.raises(ConfigError, match="NOWHERE is not set"):
        expand_argument((Path("$NOWHERE"),))


@pytest.mark.parametrize("path", ["a", "/a b/ü.jsonl", "./~/x", "price$usd", "$x/$$y", "${a}", "$", "a/$"])
def test_an_escaped_path_expands_to_itself(path: str) -> None:
    assert expand_path(escape_path(path)) == path


def test_every_command_expands_its_paths(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--output=~/x` reaches a command as it is written: no shell expands a tilde there."""
    monkeypatch.chdir(home)
    (home / "notes.txt").write_text("a few words\n" * 40)
    arguments = [
        "init",
        "tiny-dense",
        "--output=~/made",
        "--tokenizer-text=${HOME}/notes.txt",
        "--no-weights",
    ]
    build_app(arguments)(arguments, standalone_mode=False)
    assert (home / "made" / "config.json").is_file() and not (home / "~").exists()
    (home / "a.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}\n'
    )
    arguments = ["data", "convert", "$HOME/a.jsonl", "--", "~/b.jsonl"]
    build_app(arguments)(arguments, standalone_mode=False)
    assert (home / "b.jsonl").is_file()
    arguments = ["data", "check", "~/a.jsonl", "--json=~/report.json"]
    build_app(arguments)(arguments, standalone_mode=False)
    assert (home / "report.json").is_file()
    arguments = ["data", "check", "$NOWHERE/a.jsonl"]
    with pytest.raises(ConfigError, match="NOWHERE is not set"):
        build_app(arguments)(arguments, standalone_mode=False)
