"""`erniekit data`: its help, what it imports, and wrong usage."""

import subprocess
import sys
from pathlib import Path

import pytest

from erniekit.cli.main import GROUPS
from tests.command import erniekit

ERNIEKIT = Path(sys.executable).with_name("erniekit")
COMMANDS = GROUPS["data"].commands


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return erniekit("data", *arguments)


def modules_after(*arguments: str) -> tuple[str, set[str]]:
    """What a command prints, and which of the heavy packages it has imported."""
    code = (
        f"import sys\nsys.argv = ['erniekit', *{arguments!r}]\nfrom erniekit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'paddle', 'torch', 'transformers', 'numpy', 'rich', 'av', 'jinja2', 'PIL', 'pydantic'}\n"
        "print('loaded', *sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, loaded = result.stdout.rpartition("loaded")
    return text, set(loaded.split())


@pytest.mark.parametrize("arguments", [("--help",), ("data", "--help")])
def test_lists_of_commands_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    text, loaded = modules_after(*arguments)
    assert loaded <= {"pydantic"}  # typer's own, to read arguments
    if arguments == ("--help",):
        assert GROUPS["data"].summary in text
    else:
        assert text.startswith("Usage: erniekit data ")
        for name, command in COMMANDS.items():
            assert name in text and command.summary in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str) -> None:
    text, loaded = modules_after("data", name, "--help")
    assert text.startswith(f"Usage: erniekit data {name} ")
    assert COMMANDS[name].summary in text
    assert f"\n    erniekit data {name} " in text.partition("Examples:")[2]
    assert loaded <= {"pydantic"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Usage: erniekit data"),
        (("chek",), "error: no such command 'chek'. Did you mean 'check'?"),
        (("check",), "name data files, or a run with --config"),
        (("check", "run.yaml"), "run.yaml is a configuration; give it with --config"),
        (("check", "a.jsonl", "--max-length", "5"), "it needs --model or --config"),
        (("check", "a.jsonl", "--on-long", "drop"), "it needs --model or --config"),
        (("check", "a.jsonl", "--template", "ernie"), "it needs --model or --config"),
        (("check", "a.jsonl", "--format", "xml"), "is not one of"),
        (("preview",), "error: missing argument 'CONFIG'"),
        (("preview", "run.yaml", "--shuffled", "--skip", "2"), "cannot be combined"),
        (("preview", "run.yaml", "--sample", "a:1", "--skip", "2"), "cannot be combined"),
        (("convert",), "error: invalid value for IN: name the data files to read"),
        (("convert", "only.jsonl"), "error: invalid value for OUT: name the file to write, after only.jsonl"),
        (("convert", "a.jsonl", "b.jsonl", "--to", "alpaca"), "'alpaca' is not one of 'messages'"),
    ],
)
def test_wrong_usage_exits_2(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "nowhere.jsonl"), "nowhere.jsonl: cannot read the data file: No such file or directory"),
        (("check", "nowhere/*.jsonl"), "nowhere/*.jsonl: the pattern matches nothing"),
        (("check", "--config", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("preview", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("convert", "nowhere.jsonl", "out.jsonl"), "nowhere.jsonl: cannot read the data file"),
    ],
)
def test_missing_files_exit_1_without_traceback(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {message}")
    assert "Traceback" not in result.stderr
