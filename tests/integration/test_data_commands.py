"""`erniekit data check`, `preview` and `convert`, as a user runs them."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command import erniekit
from tests.unit.data.helpers import SHARED, encoded, make_checkpoint, noise, qa, write_lines

ERNIEKIT = Path(sys.executable).with_name("erniekit")
ROOT = Path(__file__).resolve().parents[2]
TESTDATA = SHARED / "testdata"
LONG = "seven " * 200


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return erniekit("data", *arguments)


def run_in_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Exit status and output of a command whose output is a terminal."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [ERNIEKIT, "data", *arguments], stdout=slave, stderr=slave, stdin=slave, env=environment
    ) as process:
        os.close(slave)
        chunks = []
        while True:
            try:
                chunk = os.read(master, 1 << 16)
            except OSError:  # the other end was closed
                break
            if not chunk:
                break
            chunks.append(chunk)
    os.close(master)
    return process.returncode, b"".join(chunks).decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("vl"), "vl")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(encoded(noise(60, 60)))
    content: list[dict[str, Any]] = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "what?"}]
    return write_lines(tmp_path / "chats.jsonl", [qa("one"), qa(content, "a cat"), qa("three")])


@pytest.fixture
def config(tmp_path: Path, model: Path, data: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {{path: {model}}}\ndata: {{train: {data}, max_length: 100}}\n"
        f"train: {{output_dir: {tmp_path / 'run'}}}\n"
    )
    return path


def test_check_of_clean_data(data: Path, tmp_path: Path) -> None:
    result = run("check", data, "--json", tmp_path / "report.json")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{data}: 3 samples (messages)"
    assert lines[-1] == "0 of 3 samples have errors"
    assert result.stderr == ""
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["samples"], report["samples_with_errors"], report["unit"]) == (3, 0, "characters")
    assert report["content"]["with pictures"] == 1


def test_check_names_what_is_wrong_and_exits_1(data: Path, model: Path) -> None:
    with data.open("a") as file:
        file.write("{broken\n" + json.dumps(qa(LONG)) + "\n")
    result = run("check", data, "--model", model, "--max-length", "100")
    assert result.returncode == 1
    assert f"{data}:4: invalid JSON: " in result.stdout
    assert f"{data}:5: too long: " in result.stdout
    assert result.stdout.splitlines()[-1] == "2 of 5 samples have errors"
    assert "Traceback" not in result.stderr


def test_too_long_with_drop_is_no_error(data: Path, model: Path) -> None:
    write_lines(data, [qa("one"), qa(LONG)])
    asked = ("check", data, "--model", model, "--max-length", "100")
    assert run(*asked).returncode == 1
    dropping = run(*asked, "--on-long", "drop")
    assert dropping.returncode == 0
    assert "1 sample would be skipped for length" in dropping.stdout


def test_check_of_a_run_takes_its_settings(config: Path, tmp_path: Path, data: Path) -> None:
    eval_data = write_lines(tmp_path / "heldout.jsonl", [qa("one"), qa(LONG)])
    text = config.read_text().replace("max_length", f"eval: {eval_data}, max_length")
    config.write_text(text)
    result = run("check", "--config", config)
    assert result.returncode == 1
    assert result.stdout.startswith("template ernie_vl, max_length 100\n")
    assert f"{eval_data}: 2 samples (messages), eval, 1 with errors" in result.stdout
    assert "packing: 3 documents" in result.stdout
    only = run("check", data, "--config", config, "--max-length", "50")
    assert only.returncode == 0
    assert only.stdout.startswith("template ernie_vl, max_length 50\n")
    assert str(eval_data) not in only.stdout


def test_check_that_cannot_write_its_report(data: Path, tmp_path: Path) -> None:
    result = run("check", data, "--json", tmp_path / "no" / "report.json")
    assert result.returncode == 1
    assert "report.json: cannot be written" in result.stderr


def test_check_of_a_directory_without_a_tokenizer(data: Path, tmp_path: Path) -> None:
    result = run("check", data, "--model", tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'config.json'}: not found")


def test_preview_is_plain_where_nobody_sees_colours(config: Path, data: Path) -> None:
    result = run("preview", config, "-n", "2")
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    assert f"== {data}:1\n" in result.stdout
    assert f"== {data}:2\n" in result.stdout
    assert f"== {data}:3\n" not in result.stdout
    assert "⟦seven<|end_of_sentence|>⟧" in result.stdout
    assert f"[image 1: {data.parent / 'a.png'} 56x56, 4 tokens]" in result.stdout


def test_a_run_that_learns_preferences_shows_and_checks_both_answers(config: Path, data: Path) -> None:
    write_lines(data, [{"prompt": "one?", "chosen": "two", "rejected": "six"}, qa("one")])
    shown = run("preview", config, "task=dpo")
    assert shown.returncode == 0
    heads = [line.split(":")[0] for line in shown.stdout.splitlines() if line.startswith("-- ")]
    assert heads == ["-- shared by both answers", "-- chosen answer", "-- rejected answer"]
    assert "⟦two<|end_of_sentence|>⟧" in shown.stdout and "⟦six<|end_of_sentence|>⟧" in shown.stdout
    assert "cannot be used: not a pair" in shown.stdout
    config.write_text(f"task: dpo\n{config.read_text()}")
    checked = run("check", "--config", config)
    assert checked.returncode == 1
    assert f"{data}:2: not a pair" in checked.stdout


def test_preview_chooses(config: Path, data: Path) -> None:
    def titles(*arguments: str) -> list[str]:
        result = run("preview", config, *arguments)
        assert result.returncode == 0, result.stderr
        return [line.removeprefix("== ") for line in result.stdout.splitlines() if line.startswith("== ")]

    assert titles("--skip", "1", "-n", "1") == [f"{data}:2"]
    assert titles("--sample", f"{data}:3", "--sample", f"{data}:1") == [f"{data}:3", f"{data}:1"]
    assert len(titles("--shuffled", "-n", "2", "--seed", "3")) == 2
    assert titles("data.loss_on=each_turn", "-n", "1") == [f"{data}:1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--skip", "9"), "there are 3 samples: none is left after the first 9"),
        (("--sample", "chats.jsonl"), "a sample is named file:line"),
        (("--sample", "nowhere.jsonl:1"), "nowhere.jsonl: no such file"),
        (("--eval",), "data.eval is empty"),
        (("data.max_lenght=5",), "did you mean `data.max_length`?"),
        (("data.train=nowhere.jsonl",), "nowhere.jsonl: cannot read the data file"),
        (("model.path=nowhere",), "nowhere: no such directory"),
        (("--html", "no/such/directory.html"), "cannot be written"),
    ],
)
def test_preview_mistakes(config: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("preview", config, *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_preview_goes_on_after_a_sample_that_fails(config: Path, data: Path) -> None:
    lines = data.read_text().splitlines()
    data.write_text("\n".join(["{broken", *lines]) + "\n")
    result = run("preview", config, "-n", "2")
    assert result.returncode == 0
    assert "cannot be used: invalid JSON" in result.stdout
    assert f"== {data}:2\n" in result.stdout


def test_preview_writes_a_page(config: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run("preview", config, "--html", page)
    assert (result.returncode, result.stdout) == (0, f"3 samples written to {page}\n")
    assert "data:image/jpeg;base64," in page.read_text(encoding="utf-8")


def test_preview_in_a_terminal_is_coloured_unless_plain(config: Path) -> None:
    status, text = run_in_terminal("preview", config, "-n", "1")
    assert status == 0
    assert "\x1b[" in text
    assert "⟦" not in text
    status, text = run_in_terminal("preview", config, "-n", "1", "--plain")
    assert status == 0
    assert "⟦seven" in text
    assert "\x1b[" not in text


def test_convert(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "all.jsonl"
    result = run("convert", data, output, "--to", "messages")
    assert result.returncode == 0
    assert result.stdout == f"3 samples from 1 file written to {output}\n"
    assert run("check", output).returncode == 0
    image = json.loads(output.read_text().splitlines()[1])["messages"][0]["content"][0]
    assert image == {"type": "image", "image": "../a.png"}


def test_convert_stops_at_errors_unless_asked_to_skip(data: Path, tmp_path: Path) -> None:
    data.write_text(data.read_text() + "{broken\n")
    output = tmp_path / "all.jsonl"
    stopped = run("convert", data, output)
    assert stopped.returncode == 1
    assert stopped.stderr.startswith(f"error: {data}:4: not valid JSON")
    assert not output.exists()
    skipped = run("convert", data, output, "--on-error", "skip")
    assert skipped.returncode == 0
    assert skipped.stdout.splitlines()[1:] == [
        "1 sample skipped (invalid JSON 1)",
        f"3 samples from 1 file written to {output}",
    ]
    assert len(output.read_text().splitlines()) == 3


def test_shipped_samples_are_clean(model: Path) -> None:
    result = run("check", ROOT / "data")
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines()[-1].startswith("0 of ")


@pytest.mark.skipif(not TESTDATA.is_dir(), reason="needs ../shared/testdata")
@pytest.mark.parametrize(
    ("name", "samples", "failed"),
    [
        ("alpaca_en_demo.json", 999, 0),
        ("dpo_en_demo.json", 300, 0),
        ("glaive_toolcall_en_demo.json", 300, 0),
        ("identity.json", 91, 0),
        ("mllm_demo.json", 6, 0),
        ("mllm_video_demo.json", 3, 1),
    ],
)
def test_real_data(name: str, samples: int, failed: int) -> None:
    result = run("check", TESTDATA / name)
    assert result.stdout.splitlines()[-1] == f"{failed} of {samples} samples have errors"
    assert result.returncode == int(failed > 0)
    if failed:
        assert f"missing video: no such video: {TESTDATA / 'mllm_demo_data' / '2.avi'}" in result.stdout
