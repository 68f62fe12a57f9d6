"""Runs that died before they saved anything, in directories of every state: they begin again, or are refused."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from erniekit.checkpoint.best import BEST_FILE
from erniekit.cli.main import build_app
from erniekit.config import dump_config, load_config
from erniekit.errors import CheckpointError, ConfigError
from erniekit.train import build
from erniekit.train.run import run_training
from erniekit.train.run_lock import LOCK_FILE
from erniekit.train.trainer import Trainer
from tests.checkpoints import tensors
from tests.integration.training_setup import losses, make_config, read_log


class Died(BaseException):
    """Stands for a kill."""


def die_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.train_step

    def step_or_die(trainer: Trainer) -> object:
        if trainer.progress.step == step:
            raise Died
        return original(trainer)

    monkeypatch.setattr(Trainer, "train_step", step_or_die)


@pytest.mark.parametrize(("resume", "lora"), [(False, False), (True, True)], ids=["plain", "resume-lora"])
def test_a_run_that_died_before_its_first_checkpoint_begins_again(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, resume: bool, lora: bool
) -> None:
    settings = {
        "lora__enabled": lora,
        "train__max_steps": 3,
        "checkpoint__save_every": 9,
        "data__cache_dir": str(tmp_path / "run/cache"),
    }
    whole = tmp_path / "whole"
    run_training(make_config(whole, model, data, **settings))
    run = tmp_path / "run"
    config = make_config(run, model, data, **settings)
    with monkeypatch.context() as patch:
        die_at(2, patch)
        with pytest.raises(Died):
            run_training(config)
    # In the middle of its first save.
    (run / ".checkpoint-000002.tmp").mkdir()
    (run / ".checkpoint-000002.tmp" / "model.safetensors").write_bytes(b"half")
    (run / "nohup.out").write_text("what the terminal showed\n")
    assert [line["step"] for line in read_log(run)] == [1, 2]
    assert run_training(config, resume=resume) == 0
    assert losses(run) == losses(whole)
    expected, found = tensors(whole), tensors(run)
    assert list(expected) == list(found) and all((expected[name] == found[name]).all() for name in expected)
    assert not list(run.glob(".checkpoint-*"))


@pytest.mark.parametrize("there", [False, True], ids=["absent", "empty"])
def test_resume_begins_where_nothing_was_ever_saved(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    run = tmp_path / "run"
    if there:
        run.mkdir()
    assert run_training(make_config(run, model, data, train__max_steps=1), resume=True) == 0
    assert (
        "there is no checkpoint to resume from yet; the run starts at its first step"
        in capsys.readouterr().out
    )
    assert (run / "checkpoint-000001").is_dir()


def test_checkpoints_are_never_begun_over(tmp_path: Path, model: Path, data: Path) -> None:
    run = tmp_path / "run"
    config = make_config(run, model, data, train__max_steps=1)
    run_training(config)
    refusal = r"is not empty\. Add --resume .* checkpoint-000001, or choose another directory"
    with pytest.raises(ConfigError, match=refusal):
        run_training(config)
    (run / "checkpoint-000001" / "trainer_state.json").unlink()
    with pytest.raises(ConfigError, match=refusal):
        run_training(config)
    with pytest.raises(CheckpointError, match=r"no complete checkpoint to resume from.*checkpoint-000001"):
        run_training(config, resume=True)
    assert (run / "checkpoint-000001" / "optimizer-00001-of-00001.safetensors").is_file()


def test_a_finished_run_has_nothing_left_to_do(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = make_config(run, model, data, train__max_steps=2)
    run_training(config)
    before = (run / "checkpoint-000002" / "trainer_state.json").stat().st_mtime_ns
    capsys.readouterr()
    assert run_training(config, resume=True) == 0
    assert "Done: 2 steps" in capsys.readouterr().out
    assert (run / "checkpoint-000002" / "trainer_state.json").stat().st_mtime_ns == before
    # A configuration with a number of tokens keeps the run's two packed sequences per step.
    by_tokens = {"train__rows_per_step": None, "train__tokens_per_step": 160}
    assert run_training(make_config(run, model, data, train__max_steps=3, **by_tokens), resume=True) == 0
    assert (
        "train.tokens_per_step is 160, but a step takes up to 320 tokens: 2 rows" in capsys.readouterr().out
    )
    assert [line["step"] for line in read_log(run)] == [1, 2, 3]
    assert load_config(run / "config.yaml").train.rows_per_step == 2


@pytest.mark.parametrize("resume", [False, True], ids=["plain", "resume"])
def test_files_of_others_are_left_alone(tmp_path: Path, model: Path, data: Path, resume: bool) -> None:
    run = tmp_path / "run"
    for name in ("thesis.docx", "checkpoint-500"):
        (run / "logs").mkdir(parents=True, exist_ok=True)
        (run / name).mkdir()
        with pytest.raises(ConfigError, match=f"is not empty, and no run has written {name}"):
            run_training(make_config(run, model, data, train__max_steps=1), resume=resume)
        (run / name).rmdir()
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below" / "run"):
        config = make_config(run, model, data, train__max_steps=1, train__output_dir=str(place))
        with pytest.raises(ConfigError, match=r"train\.output_dir: .*file is not a directory"):
            run_training(config, resume=resume)


def test_what_a_dead_run_left_is_not_taken_for_this_one(tmp_path: Path, model: Path, data: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("# mine\nextends: base.yaml\n")
    (run / BEST_FILE).write_text(json.dumps({"checkpoint": "checkpoint-000009"}))
    (run / "log.jsonl").write_text('{"step": 9, "train/loss": 1.0}\n{"ste')
    config = make_config(run, model, data, train__max_steps=1)
    run_training(config)
    assert (run / "config.previous.yaml").read_text() == "# mine\nextends: base.yaml\n"
    assert load_config(run / "config.yaml") == config
    assert not (run / BEST_FILE).exists()
    assert [line["step"] for line in read_log(run)] == [1]


HOLD = """
import sys
from pathlib import Path
from erniekit.train.run_lock import lock_run_directory
with lock_run_directory(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_do_not_train_in_one_directory(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = make_config(run, model, data, train__max_steps=1)
    (run / "config.yaml").write_text(dump_config(config))
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        for resume in (False, True):
            who = rf"another run, process {other.pid} on {socket.gethostname()}, since \d.*, trains in .*run;"
            # The processes of a launcher would write to the logs of the first run.
            several = [str(run / "config.yaml"), "--devices", "cpu:2", *(["--resume"] if resume else [])]
            refused = CliRunner().invoke(build_app(["train"]), ["train", *several]).exception
            assert isinstance(refused, ConfigError) and re.search(who, str(refused))
            assert not (run / "logs").exists()
            with pytest.raises(ConfigError, match=who):
                run_training(config, resume=resume)
    finally:
        other.kill()
        other.communicate()
    # However it ended, the directory is free again.
    assert run_training(config) == 0
    assert f"process {other.pid} on {socket.gethostname()}, since" in capsys.readouterr().out
    assert (run / LOCK_FILE).read_text() == ""


def test_a_resumed_run_has_the_lock_before_it_reads(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one that resumes at the same time would write newer checkpoints meanwhile."""
    run = tmp_path / "run"
    config = make_config(run, model, data, train__max_steps=1)
    run_training(config)
    find = build.checkpoint_to_resume
    second = f"from pathlib import Path; from erniekit.train.run_lock import *; refuse_second_run(Path({str(run)!r}))"

    def find_locked(*arguments: Any, **options: Any) -> Any:
        done = subprocess.run([sys.executable, "-c", second], capture_output=True, text=True)
        assert "ConfigError: train.output_dir: another run" in done.stderr
        return find(*arguments, **options)

    monkeypatch.setattr(build, "checkpoint_to_resume", find_locked)
    assert run_training(config, resume=True) == 0
    assert (run / LOCK_FILE).read_text() == ""
