"""Completion in shells: the commands, and the options of the one that is typed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import erniekit

ERNIEKIT = Path(sys.executable).with_name("erniekit")


def complete(line: str, shell: str) -> subprocess.CompletedProcess[str]:
    """What a shell asks for when the last word of a line is completed."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environment = os.environ | asked | {"_ERNIEKIT_COMPLETE": f"complete_{shell}"}
    return subprocess.run([ERNIEKIT], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("line", "shell", "words", "others"),
    [
        ("erniekit ev", "bash", {"eval"}, {"train"}),
        ("erniekit train --d", "bash", {"--devices", "--dry-run"}, {"--resume"}),
        ("erniekit data ch", "zsh", {'"check"'}, {"convert"}),
        ("erniekit data check --max", "fish", {"--max-length"}, {"--json"}),
    ],
)
def test_a_line_is_completed(line: str, shell: str, words: set[str], others: set[str]) -> None:
    found = complete(line, shell)
    assert found.returncode == 0, found.stderr
    assert not found.stderr
    assert all(word in found.stdout for word in words)
    assert not any(word in found.stdout for word in others)


def test_the_help_names_the_options_that_install_it() -> None:
    shown = erniekit("--help").stdout
    assert "--install-completion" in shown and "--show-completion" in shown
    assert "--install-completion" not in erniekit("data", "--help").stdout


def test_the_script_can_be_shown() -> None:
    found = subprocess.run(
        ["bash", "-c", f"{ERNIEKIT} --show-completion"], capture_output=True, text=True, check=False
    )
    assert "_ERNIEKIT_COMPLETE=complete_" in found.stdout, found.stderr
