"""A disk that is full at the start, during a run, at --resume and in the cache: a message, and no lost model."""

import errno
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from erniekit.cli import main as command
from erniekit.cli.main import main
from erniekit.errors import CheckpointError, ConfigError, DataError
from erniekit.generation.load import find_model
from erniekit.train.run import run_training
from erniekit.train.trainer import Trainer
from tests.checkpoints import tensors
from tests.integration.training_setup import make_config


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> None:
    """Leave no page on a disk."""
    descriptor = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, bytes(1 << 16))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(descriptor)


def after_step(step: int, action: object, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.train_step

    def train_step(trainer: Trainer) -> object:
        if trainer.progress.step == step:
            action()  # type: ignore[operator]
        return original(trainer)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_full_at_the_start_at_a_resume_and_in_the_cache(
    tmp_path: Path, disk: Path, model: Path, data: Path
) -> None:
    cache = {"data__cache_dir": str(tmp_path / "cache")}
    run = {"train__output_dir": str(disk / "run"), "train__max_steps": 1}
    run_training(make_config(tmp_path / "x", model, data, **cache, **run))
    kept = (disk / "run" / "config.yaml").read_text()
    fill(disk)
    full = r"run cannot be written: No space left on device; make room, or choose another directory"
    with pytest.raises(ConfigError, match=full):
        run_training(make_config(tmp_path / "x", model, data, **cache, **run), resume=True)
    assert (disk / "run" / "config.yaml").read_text() == kept
    shutil.rmtree(disk / "run")
    fill(disk)
    with pytest.raises(ConfigError, match=full):
        run_training(make_config(tmp_path / "x", model, data, **cache, **run))
    cache = {"data__cache_dir": str(disk / "cache")}
    with pytest.raises(
        DataError, match=r"the encoded samples cannot be written: No space left on device; set data\."
    ):
        run_training(make_config(tmp_path / "x", model, data, **cache, train__max_steps=1))


def test_full_during_a_run(
    tmp_path: Path,
    disk: Path,
    model: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run goes on without its log and its answers; the last checkpoint is an error."""
    settings = {
        **{"train__output_dir": str(disk / "run"), "train__max_steps": 3, "log__tensorboard": False},
        **{"data__eval": str(data), "train__eval_every": 2, "eval__samples": 2, "eval__max_new_tokens": 2},
    }
    after_step(1, lambda: fill(disk), monkeypatch)
    with pytest.raises(CheckpointError, match="the checkpoint cannot be written: No space left on device"):
        run_training(make_config(tmp_path / "x", model, data, **settings))
    printed = capsys.readouterr().out
    assert printed.count("log.jsonl cannot be written: No space left on device. The run goes on") == 1
    assert "the answers cannot be written: No space left on device. The run goes on without them" in printed
    assert "step 3/3" in printed


def test_output_that_cannot_be_written_ends_nothing(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log on a full disk, a closed terminal, or a pipe to a program that has ended."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "stderr", Full())
    assert run_training(make_config(tmp_path / "run", model, data, train__max_steps=1)) == 0
    assert "model.embed_tokens.weight" in tensors(tmp_path / "run")


def test_a_disk_that_is_too_small_for_a_checkpoint(
    tmp_path: Path,
    model: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Said before training, and not days later."""
    free = 10**6
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    config = make_config(tmp_path / "run", model, data, train__max_steps=1)
    with pytest.raises(
        ConfigError, match=r"has 976\.6 KiB of free disk space, and a checkpoint takes 21\.. MiB"
    ):
        run_training(config)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    free = 50 * 10**6
    assert run_training(config) == 0
    kept = "the 2 that are kept, and the next one beside them, need 63."
    assert kept in capsys.readouterr().out
    free = 10**6
    assert run_training(config, resume=True) == 0, "nothing is left to save"
    free = 100 * 10**6
    run_training(make_config(tmp_path / "other", model, data, train__max_steps=1))
    assert kept not in capsys.readouterr().out


def test_a_directory_that_is_removed_during_a_run(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is saved."""
    run = tmp_path / "run"
    after_step(1, lambda: shutil.rmtree(run), monkeypatch)
    assert run_training(make_config(run, model, data, train__max_steps=2)) == 0
    assert "lm_head.weight" in tensors(run) or "model.embed_tokens.weight" in tensors(run)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_disk_errors_of_any_command_are_messages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def build(arguments: object) -> object:
        raise OSError(number, os.strerror(number), "runs/a/file")

    monkeypatch.setattr("sys.argv", ["erniekit", "--version"])
    monkeypatch.setattr(command, "build_app", build)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: runs/a/file: {os.strerror(number)}\n"


def test_a_base_model_that_is_removed_during_a_run(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of all weights is a complete model all the same."""
    base = shutil.copytree(model, tmp_path / "base")
    after_step(1, lambda: shutil.rmtree(base), monkeypatch)
    run = tmp_path / "run"
    assert run_training(make_config(run, base, data, train__max_steps=2)) == 0
    find_model(run).load()
