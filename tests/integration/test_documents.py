"""What the documents and --help tell people to type works, in a clone with nothing else beside it.

Blocks of language bash run, those of sh (for machines with GPUs, networks or containers) are checked: their commands,
options and files exist. Blocks of yaml are configurations, whole or in part.
"""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from erniekit.cli.main import GROUPS
from erniekit.config import load_config
from tests.command import erniekit
from tools.docs import checkpoints, configuration

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    "README.md",
    "README_zh.md",
    "data/README.md",
    "CONTRIBUTING.md",
    *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md")),
]
COMMANDS = [
    "plan",
    "train",
    "eval",
    "export",
    "convert",
    "push",
    "verify",
    "init",
    "download",
    "doctor",
    "data check",
    "data preview",
    "data convert",
    "config convert",
    "replay",
    "chat",
    "serve",
]
# These make .venv, or run this very test; the scripts are what they run then.
EXAMPLES = {"make example-dpo": "examples/digits/dpo.sh", "make example-calls": "examples/digits/calls.sh"}
MAKE = {"make quickstart", "make test", "make lint", *EXAMPLES}
# It does not end by itself: see test_the_client_of_the_documents_talks_to_the_server.
SERVE = "erniekit serve runs/quickstart/run"
# What a block of language sh may begin with, besides erniekit.
PROGRAMS = ("pip", "python3.11", ".venv/bin/python", "source", "docker")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git would give, with this environment's programs under .venv."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    target = tmp_path_factory.mktemp("clone")
    for name in names:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    programs = target / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("erniekit", "tensorboard"):
        (programs / name).symlink_to(Path(sys.executable).parent / name)
    # A link to the interpreter would not know its environment's packages.
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    return target


def _run(command: list[str], clone: Path) -> subprocess.CompletedProcess[str]:
    """What the command does in the clone. `erniekit` runs in this process, which has Paddle imported."""
    if command[0].endswith("erniekit"):
        with contextlib.chdir(clone):
            return erniekit(*command[1:])
    path = f"{clone / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def quickstart(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the commands of the quickstart print."""
    compare = "1" if importlib.util.find_spec("torch") else "0"
    return _run_example("examples/quickstart.sh", clone, tmp_path_factory.mktemp("script"), compare)


def test_quickstart_reads_at_least_95_percent_and_loads(quickstart: str) -> None:
    found = re.search(r"exact match (\d+) of (\d+)", quickstart)
    assert found is not None
    exact, asked = map(int, found.groups())
    assert asked >= 290
    assert exact >= 0.95 * asked
    if importlib.util.find_spec("torch"):
        assert re.search(r"ok .*20 .*answers|ok .*answers.*20", quickstart), quickstart[-3000:]


def _percentages(printed: str) -> list[list[float]]:
    """The lines with metrics over all answers that `erniekit eval` printed, in percent."""
    lines = re.findall(r"^all +300((?: +[0-9.]+%)+)$", printed, re.MULTILINE)
    return [[float(value) for value in line.replace("%", "").split()] for line in lines]


def _print_example(script: str, directory: Path, *arguments: str) -> str:
    """What an example prints besides the output of its commands. None of them runs."""
    for name, source in ((script, ROOT / script), (".venv/bin/erniekit", shutil.which("true"))):
        (directory / name).parent.mkdir(parents=True)
        (directory / name).symlink_to(str(source))
    command = ["bash", script, *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout


def _run_example(script: str, clone: Path, directory: Path, *arguments: str) -> str:
    """What the commands of an example print, as the shell expands them, each run in the clone."""
    shown = _print_example(script, directory, *arguments)
    commands = re.findall(r"^\$ (erniekit .*)$", shown, re.MULTILINE)
    assert len(commands) == shown.count("== ")
    printed = ""
    for command in commands:
        finished = _run(shlex.split(command), clone)
        assert finished.returncode == 0, printed[-3000:] + finished.stdout[-3000:] + finished.stderr[-3000:]
        printed += finished.stdout
    return printed


@pytest.mark.usefixtures("quickstart")
def test_dpo_flips_a_style_of_answer_and_the_digits_stay_right(clone: Path, tmp_path: Path) -> None:
    printed = _run_example(EXAMPLES["make example-dpo"], clone, tmp_path)
    (style_before, right_before), (style_after, right_after) = _percentages(printed)
    # Those that are wrong are of either style.
    assert style_before + 100 - right_before < 20
    assert style_after > 90
    assert right_before > 90
    assert right_after > right_before - 2
    assert list((clone / "runs/digits/dpo-export").glob("*.safetensors"))


@pytest.mark.usefixtures("quickstart")
def test_calls_are_valid_and_right_after_the_example(clone: Path, tmp_path: Path) -> None:
    printed = _run_example(EXAMPLES["make example-calls"], clone, tmp_path)
    assert re.search(r"^metrics .* call_valid +call_match$", printed, re.MULTILINE)
    ((*_, valid, right),) = _percentages(printed)
    assert valid >= 90
    assert right >= 90
    assert list((clone / "runs/digits/calls-export").glob("*.safetensors"))


@pytest.mark.parametrize("command", EXAMPLES)
def test_make_runs_the_example_after_the_quickstart(command: str, clone: Path) -> None:
    # Under `make test` the inner make would also tell which directory it enters and leaves.
    dry = ["make", "--dry-run", "--no-print-directory", command.split()[1]]
    shown = subprocess.run(dry, cwd=clone, capture_output=True, text=True)
    assert EXAMPLES[command] in shown.stdout.splitlines()[-1], shown.stderr


def _blocks(text: str, language: str = "bash") -> Iterator[str]:
    """Commands of all blocks of a language, continuation lines joined."""
    for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line.strip()


@pytest.fixture(scope="module")
def done() -> set[str]:
    """Commands that a test has run already: several documents have some of them."""
    return {*MAKE, SERVE}


@pytest.mark.usefixtures("quickstart")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_documents_run(document: str, clone: Path, done: set[str]) -> None:
    for command in _blocks((ROOT / document).read_text(encoding="utf-8")):
        if command in done:
            continue
        done.add(command)
        words = shlex.split(command, comments=True)
        assert words[0] in ("erniekit", "python"), f"{document}: no test knows how to run {command!r}"
        finished = _run(words, clone)
        assert finished.returncode == 0, f"{command}\n{finished.stdout[-2000:]}{finished.stderr[-2000:]}"


@pytest.mark.usefixtures("quickstart")
def test_the_client_of_the_documents_talks_to_the_server(clone: Path) -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert SERVE in _blocks(text)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert code.count("http://127.0.0.1:8000") == 1
    command = [str(clone / ".venv" / "bin" / "erniekit"), *SERVE.split()[1:], "--port", "0"]
    with subprocess.Popen(command, cwd=clone, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = iter(server.stdout.readline, "")
            url = next(found[1] for line in said if (found := re.search(r"listening on (\S+)/v1", line)))
            finished = _run(["python", "-c", code.replace("http://127.0.0.1:8000", url)], clone)
            assert re.fullmatch(r"\d\n", finished.stdout), finished.stderr[-2000:]
            server.send_signal(signal.SIGINT)
            assert server.wait() == 0
        finally:
            server.kill()


def test_the_configuration_in_the_readme_passes_a_dry_run(clone: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (clone / "run.yaml").write_text(block)
    finished = _run(["erniekit", "train", "run.yaml", "--dry-run", "--no-weights"], clone)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("document", DOCUMENTS)
def test_configurations_of_documents_are_valid(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a configuration is one together with a model, data and a directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "whole.yaml").write_text("model: {path: m}\ndata: {train: a.jsonl}\ntrain: {output_dir: o}\n")
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL):
        if "extends:" not in block:
            block = f"extends: whole.yaml\n{block}"
        (tmp_path / "run.yaml").write_text(block)
        load_config(tmp_path / "run.yaml")


def test_commands_for_other_machines_exist(help_texts: dict[str, str]) -> None:
    for document in DOCUMENTS:
        for command in _blocks((ROOT / document).read_text(encoding="utf-8"), "sh"):
            words = command.split()
            if words[0] != "erniekit":
                assert words[0] in PROGRAMS, f"{document}: {command}"
                continue
            _assert_known(command, help_texts)
            for word in words:
                assert not word.startswith("examples/") or (ROOT / word).exists(), f"{document}: {word}"


@pytest.mark.usefixtures("quickstart")
def test_the_next_steps_of_the_quickstart(clone: Path, tmp_path: Path) -> None:
    lines = _print_example("examples/quickstart.sh", tmp_path).split("Next:\n")[1].splitlines()
    commands = [
        shlex.split(line.split("      ")[0]) for line in lines if line.strip().startswith(".venv/bin/")
    ]
    assert len(commands) == 3
    for words in commands:
        if words[0].endswith("tensorboard"):
            assert any((clone / words[2]).glob("events.out.tfevents.*"))
        else:
            assert _run(words, clone).returncode == 0, words


@pytest.mark.usefixtures("quickstart")
@pytest.mark.parametrize(
    "arguments",
    [
        "startup.py --runs 1",
        "kernels.py --tokens 64 --repeats 1",
        "train_step.py --steps 1 --no-peer",
        "data.py --images 200 --workers 1",
        "media.py --seconds 0.01 --rounds 1 --video-seconds 4",
        "moe.py --sizes 64x32x64 --repeats 1 --processes 2",
    ],
    ids=lambda a: a.split()[0],
)
def test_benches_run(arguments: str, clone: Path) -> None:
    finished = _run(["python", *f"tools/bench/{arguments}".split()], clone)
    assert finished.returncode == 0, finished.stderr[-2000:]
    printed = (
        r"RMSNorm +[0-9.]+|ms per step|memory of all processes, MB.*: \d+|images per second|of it in dispatch"
        r"|erniekit --help +[0-9.]+"
    )
    assert re.search(printed, finished.stdout), finished.stdout


@pytest.fixture(scope="module")
def help_texts() -> dict[str, str]:
    finished = {command: erniekit(*command.split(), "--help") for command in COMMANDS}
    assert {done.returncode for done in finished.values()} == {0}
    return {command: done.stdout for command, done in finished.items()}


def _assert_known(command: str, help_texts: dict[str, str]) -> None:
    words = shlex.split(command.split(" #")[0])
    name = " ".join(words[1:3]) if words[1] in GROUPS and len(words) > 2 else words[1]
    assert name in COMMANDS or command.removeprefix("erniekit ") in GROUPS, command
    for word in words[2:]:
        if word.startswith("--"):
            assert word in help_texts[name], f"{command}: {name} has no option {word}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_with_options_that_exist(command: str, help_texts: dict[str, str]) -> None:
    examples = [
        line.strip() for line in help_texts[command].splitlines() if line.strip().startswith("erniekit ")
    ]
    assert examples
    for example in examples:
        _assert_known(example, help_texts)


def test_commands_in_running_text_exist(help_texts: dict[str, str]) -> None:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for command in re.findall(r"`(erniekit [a-z][^`]*)`", text):
            _assert_known(" ".join(command.split()), help_texts)


def test_the_page_of_keys_is_that_of_the_schema() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == configuration.document(), "run python tools/docs/configuration.py"


def test_the_page_of_checkpoints_has_every_key_of_config_json() -> None:
    written = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert written == checkpoints.document(), "run python tools/docs/checkpoints.py"


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text(encoding="utf-8")):
            assert "://" in link or ((ROOT / document).parent / link).exists(), f"{document}: {link}"
