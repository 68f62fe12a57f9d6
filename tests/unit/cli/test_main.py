"""The `erniekit` command: imports of its help, exit statuses, and errors without tracebacks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from erniekit import __version__
from erniekit.cli import main
from erniekit.cli.main import COMMANDS
from tests.command import erniekit

ERNIEKIT = Path(sys.executable).with_name("erniekit")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ERNIEKIT, *arguments], capture_output=True, text=True, check=False)


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.returncode == 0
    for name, command in COMMANDS.items():
        assert name in result.stdout and command.summary in result.stdout


def test_help_imports_little() -> None:
    """Few imports keep it fast: tools/bench/startup.py measures the time."""
    code = (
        "import sys\nbefore = set(sys.modules)\n"
        "sys.argv = ['erniekit', '--help']\nfrom erniekit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint(*set(sys.modules) - before)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(result.stdout.splitlines()[-1].split())
    packages = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    assert packages == {"erniekit", "typer", "annotated_doc", "shellingham"}  # the last two are typer's
    assert len(found) < 200


@pytest.fixture(scope="module")
def helps() -> dict[str, Any]:
    """By command, one after the other in one process: exit status, output and the heavy packages imported so far."""
    code = """
import contextlib, io, json, sys
from erniekit.cli.main import COMMANDS, main
found = {}
for name in COMMANDS:
    sys.argv, status = ["erniekit", name, "--help"], None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as error:
            status = error.code
    heavy = sorted({"paddle", "transformers", "torch"} & set(sys.modules))
    found[name] = {"status": status, "text": out.getvalue(), "heavy": heavy}
print(json.dumps(found))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_no_paddle(name: str, helps: dict[str, Any]) -> None:
    shown = helps[name]
    assert (shown["status"], shown["heavy"]) == (0, [])
    assert shown["text"].startswith(f"Usage: erniekit {name} ")


def test_version_and_module_form() -> None:
    assert run("--version").stdout == f"erniekit {__version__}\n"
    result = subprocess.run([sys.executable, "-m", "erniekit", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"erniekit {__version__}\n")


def test_wrong_usage_exits_2() -> None:
    unknown = erniekit("trian")
    assert unknown.returncode == 2
    assert "\nerror: no such command 'trian'. Did you mean 'train'?\n" in unknown.stderr
    assert erniekit().returncode == 2
    assert erniekit("train").returncode == 2
    weights = erniekit("train", "x.yaml", "--no-weights")
    assert weights.returncode == 2
    assert "it can only be used with --dry-run" in weights.stderr


def test_train_help_shows_examples() -> None:
    result = erniekit("train", "--help")
    assert result.returncode == 0
    assert "erniekit train run.yaml optimizer.learning_rate=1e-4" in result.stdout
    assert "erniekit train run.yaml --resume" in result.stdout


def test_errors_of_a_configuration_exit_1_without_traceback(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {path: m}\ntrain: {output_dir: out}\nmax_seq_len: 3\n")
    result = erniekit("train", path, "data.train=a.jsonl")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"error: {path}:3: max_seq_len: unknown key; did you mean `data.max_length`? "
        "Maximum number of tokens in a packed sequence, which is one micro-batch.\n"
    )
    missing = erniekit("train", tmp_path / "no.yaml")
    assert (missing.returncode, missing.stderr) == (1, f"error: {tmp_path / 'no.yaml'}: no such file\n")


def run_main(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int | str | None:
    """The exit status of a command that raises `error`."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(main.Command, "load", lambda self: fail)
    monkeypatch.setattr(sys, "argv", ["erniekit", "verify"])
    with pytest.raises(SystemExit) as caught:
        main.main()
    return caught.value.code


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(monkeypatch, KeyboardInterrupt()) == 130


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_main(monkeypatch, ZeroDivisionError())
