"""Saves that fail, or are in the background when a run ends."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint import host_copy, writer
from erniekit.checkpoint.host_copy import CpuCopy
from erniekit.checkpoint.writer import FileWriter
from erniekit.errors import CheckpointError, ErnieKitError
from erniekit.train import checkpointer
from erniekit.train.run import run_training
from tests.integration.runs import at_step_3
from tests.integration.training_setup import losses, make_config, read_log


@pytest.mark.parametrize("background", [True, False], ids=["background", "waiting"])
def test_a_save_that_fails_ends_nothing_while_an_older_checkpoint_stands(
    tmp_path: Path,
    model: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    background: bool,
) -> None:
    written = writer.write_safetensors
    full_at = {".checkpoint-000002.tmp", ".checkpoint-000003.tmp"}

    def full(file: Path, *arguments: Any) -> Any:
        if file.parent.name in full_at:
            raise OSError(28, "No space left on device")
        return written(file, *arguments)

    monkeypatch.setattr(writer, "write_safetensors", full)
    settings = {"train__max_steps": 4, "checkpoint__save_every": 1, "checkpoint__background": background}
    run = tmp_path / "run"
    assert run_training(make_config(run, model, data, **settings)) == 0
    printed = capsys.readouterr().out
    for step in (2, 3):
        assert f".checkpoint-{step:06d}.tmp: the checkpoint cannot be written: No space left" in printed
    assert f"Training continues; the last checkpoint is {run / 'checkpoint-000001'}" in printed
    names = sorted(path.name for path in run.glob("*checkpoint-*"))
    assert names == ["checkpoint-000001", "checkpoint-000004"]
    assert [line["step"] for line in read_log(run)] == [1, 2, 3, 4]
    for step in (1, 4):
        full_at = {f".checkpoint-{step:06d}.tmp"}
        with pytest.raises(CheckpointError, match="No space left on device"):
            run_training(make_config(tmp_path / str(step), model, data, **settings))


@pytest.mark.parametrize("background", [True, False], ids=["background", "waiting"])
def test_what_the_main_process_adds_may_fail_too(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    settings: dict[str, Any] = {"train__max_steps": 1, "checkpoint__background": background}
    with monkeypatch.context() as patch:
        patch.setattr(checkpointer, "write_adapter_settings", full)
        with pytest.raises(CheckpointError, match=r"000001\.tmp: the checkpoint cannot be written: No space"):
            run_training(make_config(tmp_path / "full", model, data, lora__enabled=True, **settings))
    # A file where the directory should be.
    monkeypatch.setattr(checkpointer, "unfinished_name", lambda step: "config.yaml/below")
    with pytest.raises(CheckpointError, match="below: the checkpoint cannot be written: Not a directory"):
        run_training(make_config(tmp_path / "file", model, data, **settings))


def test_a_file_that_the_main_process_does_not_see_is_reported(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, name = FileWriter.run, "optimizer-00001-of-00001.safetensors"

    def write_elsewhere(writer: FileWriter) -> None:
        run(writer)
        next(tmp_path.glob(f"run/.checkpoint-*/{name}")).unlink()

    monkeypatch.setattr(FileWriter, "run", write_elsewhere)
    with pytest.raises(
        CheckpointError, match=f"{name} is missing; without a disk .* checkpoint.shared: false"
    ):
        run_training(make_config(tmp_path / "run", model, data, train__max_steps=1, lora__enabled=True))


def test_a_checkpoint_in_the_background_is_the_one_that_was_begun(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"train__max_steps": 3, "checkpoint__save_every": 1, "checkpoint__keep": 9}
    waiting, background = tmp_path / "waiting", tmp_path / "background"
    run_training(make_config(waiting, model, data, checkpoint__background=False, **settings))
    start, join = FileWriter.start, FileWriter.join
    begun: list[FileWriter] = []

    def start_and_join(writer: FileWriter) -> None:
        copying.set()
        start(writer)
        join(writer)

    # Tensors are copied as late as possible: when the next update waits for it, or the end of the run.
    copy, wait, copying = np.copyto, CpuCopy.wait, threading.Event()
    waited: list[bool] = []

    def copy_late(target: np.ndarray, source: np.ndarray) -> None:
        assert copying.wait(60)
        copy(target, source)

    def copy_and_wait(memory: CpuCopy) -> None:
        copying.set()
        wait(memory)
        copying.clear()
        waited.append(True)

    monkeypatch.setattr(host_copy.np, "copyto", copy_late)
    monkeypatch.setattr(CpuCopy, "wait", copy_and_wait)
    # The thread writes only when the next checkpoint is wanted: after another step.
    monkeypatch.setattr(FileWriter, "start", lambda writer: begun.append(writer))
    monkeypatch.setattr(FileWriter, "is_running", property(lambda _: True))
    monkeypatch.setattr(FileWriter, "join", start_and_join)
    run_training(make_config(background, model, data, **settings))
    assert len(begun) == 3
    assert len(waited) == 2
    for step in (1, 2, 3):
        for file in ("model-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors"):
            name = f"checkpoint-{step:06d}/{file}"
            assert (background / name).read_bytes() == (waiting / name).read_bytes()


def test_without_memory_for_a_copy_training_waits(
    tmp_path: Path,
    model: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpointer, "host_memory", lambda processes: 1 << 20)
    monkeypatch.setattr(FileWriter, "start", lambda writer: pytest.fail("no thread may run"))
    assert run_training(make_config(tmp_path / "run", model, data, train__max_steps=1)) == 0
    assert "819.2 KiB are free: training waits while this one is written" in capsys.readouterr().out


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While this event is not set, the checkpoint of step 2 stays unwritten in the background."""
    event, written = threading.Event(), writer.write_safetensors

    def write_later(file: Path, *arguments: Any) -> Any:
        if "000002" in str(file):
            event.wait()
        return written(file, *arguments)

    monkeypatch.setattr(writer, "write_safetensors", write_later)
    yield event
    event.set()


SAVES: dict[str, Any] = {"train__max_steps": 3, "checkpoint__save_every": 1, "checkpoint__keep": 9}


def test_an_error_does_not_lose_the_checkpoint_in_the_background(
    tmp_path: Path,
    model: Path,
    data: Path,
    writing: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        # The launcher sends SIGTERM while the checkpoint is being finished.
        threading.Timer(0.1, lambda: (os.kill(os.getpid(), signal.SIGTERM), writing.set())).start()
        raise ErnieKitError("the sample cannot be read")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step_3(patch, fail)
        with pytest.raises(ErnieKitError, match="the sample cannot be read"):
            run_training(make_config(run, model, data, **SAVES))
    assert sorted(path.name for path in run.glob("*checkpoint-*")) == [
        "checkpoint-000001",
        "checkpoint-000002",
    ]
    assert "finishing the checkpoint of step 2, which is being written" in capsys.readouterr().out
    assert run_training(make_config(run, model, data, **SAVES), resume=True) == 0
    assert [step for step, *_ in losses(run)] == [1, 2, 3]


def test_a_second_interrupt_says_what_is_lost(
    tmp_path: Path,
    model: Path,
    data: Path,
    writing: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)

    run = tmp_path / "run"
    at_step_3(monkeypatch, interrupt)
    assert run_training(make_config(run, model, data, **SAVES)) == 130
    lost = "The checkpoint of step 2 was being written and is lost. The newest complete checkpoint is"
    assert f"{lost} checkpoint-000001; steps after it are lost.\nContinue with:\n" in capsys.readouterr().out


def test_interrupts_stop_the_end_of_a_save_after_an_error(
    tmp_path: Path,
    model: Path,
    data: Path,
    writing: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        monkeypatch.setattr("erniekit.train.run.SAME_REQUEST_SECONDS", 0.0)
        monkeypatch.setattr(FileWriter, "join", interrupt)
        raise ErnieKitError("the sample cannot be read")

    def interrupt(writer: FileWriter) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    at_step_3(monkeypatch, fail)
    with pytest.raises(ErnieKitError, match="the sample cannot be read"):
        run_training(make_config(tmp_path / "run", model, data, **SAVES))
    printed = capsys.readouterr().out
    assert "SIGINT: finishing the checkpoint. Press Ctrl-C again to stop at once." in printed
    assert "Stopped at once. The checkpoint of step 2 was being written and is lost." in printed
