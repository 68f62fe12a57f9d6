"""`erniekit eval` as a user runs it: on runs, checkpoints and adapters, with good and bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from erniekit.checkpoint.state import newest_checkpoint
from erniekit.cli.main import main
from erniekit.train.run import run_training
from tests.integration.training_setup import chats, make_config, write_chats

SAMPLES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl", chats(SAMPLES))


@pytest.fixture
def erniekit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command in this process; gives exit status, standard output and error output."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["erniekit", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return call


def test_a_run_answers_what_it_has_trained(erniekit, trained_run: Path, data: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.jsonl"
    status, out, err = erniekit(
        "eval", trained_run, "--data", data, "--output", predictions, "--min-exact-match", 0.95
    )
    assert (status, err) == (0, "")
    assert f"exact match {SAMPLES} of {SAMPLES} (100.0%)" in out
    assert str(newest_checkpoint(trained_run)) in out
    assert f"answers: {SAMPLES} of {SAMPLES} samples" in out
    records = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert [record["id"] for record in records] == [f"{data}:{line}" for line in range(1, SAMPLES + 1)]
    assert all(record["match"] and record["answer"] == record["expected"] for record in records)
    assert all(record["expected"].startswith("It is ") for record in records)


def test_fewer_than_asked_for_is_an_error_after_the_report(
    erniekit, trained_run: Path, tmp_path: Path
) -> None:
    samples = chats(SAMPLES)[:4]
    samples[1]["messages"][-1]["content"] = "It is purple."
    file = write_chats(tmp_path / "wrong.jsonl", samples)
    status, out, err = erniekit("eval", trained_run, "--data", file, "--min-exact-match", 0.9)
    assert status == 1
    assert "exact match 3 of 4 (75.0%)" in out
    assert f"{file}:2: expected 'It is purple.', answered 'It is " in out
    assert err == "error: exact match 75.00% is below the minimum 90.00%\n"
    status, out, _ = erniekit(
        "eval", trained_run, "--data", file, "--limit", 1, "--batch", 1, "--max-new-tokens", 2
    )
    assert status == 0
    assert "exact match 0 of 1 (0.0%)" in out and "(cut off)" in out


def test_a_checkpoint_and_an_adapter(erniekit, trained_run: Path, data: Path, tmp_path: Path) -> None:
    checkpoint = newest_checkpoint(trained_run)
    assert checkpoint is not None
    settings = {"lora__enabled": True, "train__max_steps": 1, "optimizer__learning_rate": 1e-5}
    assert run_training(make_config(tmp_path / "lora", checkpoint, data, **settings)) == 0
    for path in (checkpoint, tmp_path / "lora"):
        status, out, err = erniekit("eval", path, "--data", data, "--data", data)
        assert (status, err) == (0, "")
        assert f"exact match {2 * SAMPLES} of {2 * SAMPLES}" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no samples|has no samples"),
        ('{"messages": [{"role": "user", "content": "Hello"}]}\n', "bad.jsonl:1: the chat ends with a user"),
        ('{"messages": [{"role": "us\n', "bad.jsonl:1: not valid JSON"),
    ],
)
def test_bad_data_is_named(erniekit, trained_run: Path, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(content, encoding="utf-8")
    status, _, err = erniekit("eval", trained_run, "--data", file)
    assert status == 1
    assert err.startswith("error: ")
    assert any(part in err for part in message.split("|"))


def test_what_is_missing_is_named(erniekit, trained_run: Path, data: Path, tmp_path: Path) -> None:
    status, _, err = erniekit("eval", tmp_path / "nowhere", "--data", data)
    assert (status, err.split(":")[0]) == (1, "error") and "nowhere: no such directory" in err
    status, _, err = erniekit("eval", trained_run, "--data", tmp_path / "none.jsonl")
    assert (status, err.split(":")[0]) == (1, "error") and "none.jsonl" in err
    missing = chats(2)
    missing[1]["messages"][0]["content"][0]["image_url"]["url"] = "gone.png"
    status, _, err = erniekit("eval", trained_run, "--data", write_chats(tmp_path / "missing.jsonl", missing))
    assert status == 1 and "missing.jsonl:2" in err and "gone.png" in err
    status, _, err = erniekit("eval", trained_run, "--data", data, "--dtype", "bfloat16", "--device", "cpu")
    assert status == 1 and "bfloat16 needs a GPU" in err


def test_figures_answers_and_a_page_are_written(
    erniekit, trained_run: Path, data: Path, tmp_path: Path
) -> None:
    samples = chats(SAMPLES)[:4]
    samples[1]["messages"][-1]["content"] = "It is purple, and quite surely not red."
    other = write_chats(tmp_path / "other.jsonl", samples)
    files = {name: tmp_path / "out" / name for name in ("f.json", "a.jsonl", "p.html")}
    outputs = ["--json", files["f.json"], "--output", files["a.jsonl"], "--html", files["p.html"]]
    status, out, err = erniekit(
        "eval",
        trained_run,
        "--data",
        data,
        "--data",
        other,
        *outputs,
        "--metrics",
        "auto,anls",
        "--min",
        "anls=0.5",
    )
    assert (status, err) == (0, "")
    report = json.loads(files["f.json"].read_text(encoding="utf-8"))
    assert report["model"] == str(newest_checkpoint(trained_run)) and report["template"] == "ernie_vl"
    assert list(report["sources"]) == [str(data), str(other)]
    assert sorted(report["modalities"]) == ["images", "text"]
    assert report["all"]["samples"] == report["all"]["answers"] == SAMPLES + 4
    assert report["sources"][str(other)]["metrics"]["exact_match"] == {"value": 0.75, "samples": 4}
    assert list(report["all"]["metrics"]) == ["exact_match", "anls"]
    assert report["all"]["loss"] > report["sources"][str(data)]["loss"]
    assert f"loss {report['all']['loss']:.4f} over {report['all']['loss_tokens']} tokens" in out
    assert f"exact match {SAMPLES + 3} of {SAMPLES + 4} (93.8%)" in out
    assert len(files["a.jsonl"].read_text().splitlines()) == SAMPLES + 4
    html = files["p.html"].read_text(encoding="utf-8")
    assert (
        html.count('<section class="card differs">') == 1  # a long reference, which no metric can call wrong
        and html.count('<section class="card right">') == SAMPLES + 3
    )
    assert html.count("<img ") == sum(
        isinstance(chat["messages"][0]["content"], list) for chat in chats(SAMPLES) + samples
    )
    for name, path in files.items():
        assert f"written to {path}" in out, name


def test_a_run_by_its_configuration(
    erniekit, trained_run: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    text = {
        "path": str(write_chats(tmp_path / "text.jsonl", [{"text": "It is red. It is blue."}])),
        "format": "text",
    }
    settings = {
        "model": {"path": str(model)},
        "data": {"train": str(data), "eval": [str(data), text]},
        "train": {"output_dir": str(trained_run)},
    }
    config.write_text(json.dumps(settings), encoding="utf-8")
    for arguments in ([config], ["--config", config], [trained_run, "--config", config]):
        status, out, err = erniekit("eval", *arguments)
        assert (status, err) == (0, "")
        assert str(newest_checkpoint(trained_run)) in out and f"{SAMPLES + 1} samples" in out
        assert f"exact match {SAMPLES} of {SAMPLES} (100.0%)" in out
        assert f"\n{text['path']}  " in out
    # How the run's own evaluations answer, unless options say otherwise.
    settings["eval"] = {"metrics": ["anls"], "max_new_tokens": 2}
    config.write_text(json.dumps(settings), encoding="utf-8")
    status, out, _ = erniekit("eval", config)
    assert status == 0 and " anls" in out and "answers cut off at 2 tokens" in out
    status, out, _ = erniekit("eval", config, "--metrics", "rouge_l", "--max-new-tokens", 9)
    assert " rouge_l" in out and " anls" not in out and f"exact match {SAMPLES} of {SAMPLES}" in out
    # The model that training began with, and files of one's own, in place of the run's.
    file = write_chats(tmp_path / "own.jsonl", chats(3))
    status, out, _ = erniekit("eval", model, "--config", config, "--data", file, "--no-generate")
    assert status == 0 and "3 samples" in out and "loss " in out and "exact match" not in out
    settings["data"]["eval"] = []
    config.write_text(json.dumps(settings), encoding="utf-8")
    status, _, err = erniekit("eval", config)
    assert status == 1 and err.startswith("error: data.eval is empty")


def test_what_cannot_be_used_can_be_left_out(erniekit, trained_run: Path, tmp_path: Path) -> None:
    samples = chats(6)
    samples[1]["messages"][0]["content"][0]["image_url"]["url"] = "gone.png"
    samples[3]["messages"].pop()
    for number, message in ((1, "no such image"), (3, "the chat ends with")):
        file = write_chats(tmp_path / "one.jsonl", [samples[number]])
        status, _, err = erniekit("eval", trained_run, "--data", file)
        assert status == 1 and f"{file}:1: {message}" in err
        assert err.endswith("; --on-error skip leaves out samples with such errors\n")
    file = write_chats(tmp_path / "c.jsonl", samples)
    status, out, err = erniekit("eval", trained_run, "--data", file, "--on-error", "skip")
    assert (status, err) == (0, "")
    assert "2 samples skipped (missing image: 1, no answer at the end: 1)" in out
    assert f"{file}:2: " in out and "exact match 4 of 4" in out


def test_answers_can_be_drawn(erniekit, trained_run: Path, data: Path, tmp_path: Path) -> None:
    answers = []
    for seed in (1, 1, 2):
        path = tmp_path / "answers.jsonl"
        hot = ["--temperature", 9, "--seed", seed, "--max-new-tokens", 5]
        status, _, _ = erniekit("eval", trained_run, "--data", data, *hot, "--output", path)
        assert status == 0
        answers.append([json.loads(line)["answer"] for line in path.read_text().splitlines()])
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "name a model, or a run with --config"),
        (["MODEL"], 2, "name data files, or a run with --config"),
        (["MODEL", "--data", "x", "--metrics", "rouge"], 2, "did you mean"),
        (["MODEL", "--data", "x", "--min", "rogue=1"], 2, "unknown metric"),
        (["MODEL", "--data", "x", "--min", "anls"], 2, "METRIC=SHARE"),
        (["MODEL", "--data", "x", "--min", "anls=95"], 2, "METRIC=SHARE"),
        (["MODEL", "--data", "x", "--min", "anls=nan"], 2, "METRIC=SHARE"),
        (["MODEL", "--data", "x", "--no-generate", "--min", "anls=1"], 2, "there are no answers"),
        (["MODEL", "--data", "x", "--no-generate", "--min-exact-match", "1"], 2, "there are no answers"),
        (["MODEL", "--data", "x", "--no-generate", "--html", "x.html"], 2, "there are no answers"),
        (["MODEL", "--data", "x", "--top-p", "0"], 1, "top_p must be over 0"),
        (["MODEL", "--data", "x"], 1, "x: cannot read the data file"),
        (["--config", "nowhere.yaml"], 1, "nowhere.yaml: no such file"),
    ],
)
def test_wrong_options_are_named(
    erniekit, trained_run: Path, arguments: list[str], status: int, message: str
) -> None:
    found, _, err = erniekit("eval", *[str(trained_run) if item == "MODEL" else item for item in arguments])
    assert found == status
    assert message in " ".join(err.split())


def test_the_command_as_a_process(trained_run: Path, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("erniekit"), "eval", tmp_path, "--data", "x.jsonl"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    result = subprocess.run(command[:3], capture_output=True, text=True, check=False)
    assert result.returncode == 2
