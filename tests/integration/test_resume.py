"""A resumed run is the run that never stopped: the same losses and weights, bit by bit; or it is refused."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint import host_copy, state, writer
from erniekit.checkpoint.base import BASE_FILE, read_base_checksums
from erniekit.checkpoint.host_copy import CpuCopy
from erniekit.checkpoint.state import newest_checkpoint
from erniekit.checkpoint.writer import FileWriter
from erniekit.config import load_config
from erniekit.errors import CheckpointError, ErnieKitError
from erniekit.export.export import export_model
from erniekit.train import checkpointer
from erniekit.train.build_dpo import needs_base
from erniekit.train.run import run_training
from erniekit.train.trainer import Trainer
from tests.checkpoints import tensors
from tests.integration.training_setup import chats, losses, make_config, read_log, write_chats

FULL: dict[str, Any] = {}
LORA = {"lora__enabled": True, "lora__dropout": 0.2, "lora__train_router": True}


def copy_at(source: Path, target: Path, step: int) -> None:
    """The run directory as a machine that failed some time after `step` leaves it."""
    shutil.copytree(source, target)
    for checkpoint in target.glob("checkpoint-*"):
        if int(checkpoint.name[-6:]) > step:
            shutil.rmtree(checkpoint)


def saved_losses(run: Path) -> list[float]:
    """The losses that the newest checkpoint keeps for the search for spikes."""
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    found = state.read_state(checkpoint).losses
    assert found
    return found


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    assert saved_losses(one) == saved_losses(other)
    expected, found = tensors(one), tensors(other)
    assert list(expected) == list(found)
    assert [name for name in expected if not np.array_equal(expected[name], found[name])] == []


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_bit_identical_in_every_epoch(
    tmp_path: Path, model: Path, data: Path, method: dict[str, Any]
) -> None:
    settings = {**method, "train__epochs": 3, "checkpoint__save_every": 1, "checkpoint__keep": 99}
    whole = tmp_path / "whole"
    run_training(make_config(whole, model, data, **settings))
    lines = [line for line in read_log(whole) if "train/loss" in line]
    later = [line["step"] for line in lines if line["epoch"] > 1]
    assert len(lines) >= 6
    for step in (1, later[0], lines[-2]["step"]):
        part = tmp_path / f"part{step}"
        copy_at(whole, part, step)
        assert run_training(make_config(part, model, data, **settings), resume=True) == 0
        assert_same_run(whole, part)


def test_a_run_that_ends_inside_of_an_epoch(tmp_path: Path, model: Path, data: Path) -> None:
    settings = {"train__epochs": 1.5, "checkpoint__save_every": 1, "checkpoint__keep": 99}
    whole, part = tmp_path / "whole", tmp_path / "part"
    run_training(make_config(whole, model, data, **settings))
    lines = [line for line in read_log(whole) if "train/loss" in line]
    assert 1.5 <= lines[-1]["epoch"] < 2
    first = next(line["step"] for line in lines if line["epoch"] >= 1)
    assert 1 < first < lines[-1]["step"]
    copy_at(whole, part, first)
    run_training(make_config(part, model, data, **settings), resume=True)
    assert_same_run(whole, part)
    # Nothing is left to do, and with more epochs something is.
    assert run_training(make_config(part, model, data, **settings), resume=True) == 0
    assert_same_run(whole, part)
    longer = settings | {"train__epochs": 2}
    assert run_training(make_config(part, model, data, **longer), resume=True) == 0
    assert read_log(part)[-1]["step"] > lines[-1]["step"]


def test_a_checkpoint_between_two_log_lines(tmp_path: Path, model: Path, data: Path) -> None:
    settings = {"train__max_steps": 6, "log__every": 4, "checkpoint__save_every": 3}
    whole, part = tmp_path / "whole", tmp_path / "part"
    run_training(make_config(whole, model, data, **settings))
    copy_at(whole, part, 3)
    run_training(make_config(part, model, data, **settings), resume=True)
    assert_same_run(whole, part)
    loads = [[v for k, v in line.items() if k.startswith("expert_load")] for line in read_log(whole)]
    assert loads == [[v for k, v in line.items() if k.startswith("expert_load")] for line in read_log(part)]


def test_a_finished_run_has_nothing_left_to_train(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    config = load_config(run / "config.yaml", [f"train.output_dir={json.dumps(str(run))}"])
    before = losses(run)
    assert run_training(config, resume=True) == 0
    printed = capsys.readouterr().out
    assert "nothing is left to train" in printed and f"Done: {len(before)} steps" in printed
    assert losses(run) == before


def test_an_incomplete_checkpoint_is_passed_over(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"train__max_steps": 4, "checkpoint__save_every": 1, "checkpoint__keep": 9}
    whole, part = tmp_path / "whole", tmp_path / "part"
    run_training(make_config(whole, model, data, **settings))
    shutil.copytree(whole, part)
    shutil.copytree(part / "checkpoint-000004", part / ".checkpoint-000004.tmp")
    (part / "checkpoint-000004" / "optimizer-00001-of-00001.safetensors").write_bytes(b"cut off")
    (part / "checkpoint-000003" / "trainer_state.json").unlink()
    capsys.readouterr()
    run_training(make_config(part, model, data, **settings), resume=True)
    printed = capsys.readouterr().out
    assert "skipping" in printed
    assert "checkpoint-000002, after step 2" in printed
    assert_same_run(whole, part)


def test_another_run_is_refused_and_said_why(tmp_path: Path, model: Path, data: Path) -> None:
    run = tmp_path / "run"
    settings: dict[str, Any] = {"train__max_steps": 2, "checkpoint__save_every": 1, "lora__enabled": True}
    run_training(make_config(run, model, data, **settings))
    others: dict[str, dict[str, Any]] = {
        "lora.rank: was 8, is now 4": {"lora__rank": 4},
        "train.seed: was 42, is now 1": {"train__seed": 1},
        "data.max_length: was 160, is now 200": {"data__max_length": 200},
        "model.freeze: was [], is now": {"model__freeze": ["vision"]},
        f"data.train: {data} is not in data.train any more, {tmp_path / 'x.jsonl'} is new in data.train": {
            "data__train": str(write_chats(tmp_path / "x.jsonl", chats(16, 5)))
        },
        "model.path: the content has changed": {"model__path": str(_other_model(model, tmp_path / "other"))},
    }
    for message, change in others.items():
        with pytest.raises(CheckpointError) as caught:
            run_training(make_config(run, model, data, **{**settings, **change}), resume=True)
        text = str(caught.value)
        assert message in text
        assert text.count("\n  ") == 1, "only the key that changed is named"


def test_other_settings_may_change_and_are_reported(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_training(make_config(run, model, data, train__max_steps=2))
    capsys.readouterr()
    longer = make_config(run, model, data, train__max_steps=3, optimizer__learning_rate=5e-4)
    run_training(longer, resume=True)
    printed = capsys.readouterr().out
    assert "optimizer.learning_rate: 0.001 -> 0.0005" in printed
    assert "train.max_steps: 2 -> 3" in printed
    assert [step for step, *_ in losses(run)] == [1, 2, 3]


def test_a_damaged_weight_file_is_an_error(tmp_path: Path, model: Path, data: Path) -> None:
    run = tmp_path / "run"
    config = make_config(run, model, data, train__max_steps=1)
    run_training(config)
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    shard = next(checkpoint.glob("model-*.safetensors"))
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(CheckpointError, match=f"{shard.name} is damaged: its checksum"):
        run_training(config, resume=True)


@pytest.mark.parametrize("file", ["model-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors"])
def test_a_flipped_bit_makes_the_run_continue_from_the_checkpoint_before(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    run = tmp_path / "run"
    config = make_config(run, model, data, train__max_steps=2, checkpoint__save_every=1)
    run_training(config)
    before = losses(run)
    content = bytearray((run / "checkpoint-000002" / file).read_bytes())
    content[-1] ^= 1
    (run / "checkpoint-000002" / file).write_bytes(content)
    capsys.readouterr()
    assert run_training(config, resume=True) == 0
    printed = capsys.readouterr().out
    assert f"skipping {run / 'checkpoint-000002'}: {file} is damaged" in printed
    assert "checkpoint-000001, after step 1" in printed
    assert losses(run) == before


def test_damaged_weights_are_not_exported(tmp_path: Path, model: Path, data: Path) -> None:
    run = tmp_path / "run"
    run_training(make_config(run, model, data, train__max_steps=1))
    for file, damaged in (("optimizer-00001-of-00001", False), ("model-00001-of-00001", True)):
        path = run / "checkpoint-000001" / f"{file}.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        if damaged:
            with pytest.raises(CheckpointError, match=f"{path.name} is damaged.*use an older checkpoint"):
                export_model(run, tmp_path / "export")
        else:
            export_model(run, tmp_path / "other")
    assert not (tmp_path / "export").exists()


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


def at_step_3(monkeypatch: pytest.MonkeyPatch, call: Callable[[], None]) -> None:
    """Call this before the third step."""
    at_step(2, monkeypatch, call)


def at_step(number: int, monkeypatch: pytest.MonkeyPatch, call: Callable[[], None]) -> None:
    """Call this after so many steps."""
    step = Trainer.train_step

    def train_step(trainer: Trainer) -> Any:
        if trainer.progress.step == number:
            call()
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", train_step)


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


def test_a_base_that_changed_in_its_middle_is_named(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size and its ends, which are all that is compared before it is loaded, stay as they are."""
    monkeypatch.setattr(state, "_FINGERPRINT_BYTES", 16)
    base, run = shutil.copytree(model, tmp_path / "base"), tmp_path / "run"
    settings: dict[str, Any] = {"train__max_steps": 1, "lora__enabled": True}
    run_training(make_config(run, base, data, **settings))
    shard = next(base.glob("*.safetensors"))
    content = shard.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    shard.write_bytes(changed)
    message = f"{shard}: the file of the base model has changed since the run began"
    longer = make_config(run, base, data, **settings | {"train__max_steps": 2})
    with pytest.raises(CheckpointError, match=message):
        run_training(longer, resume=True)
    with pytest.raises(CheckpointError, match=message):
        export_model(run, tmp_path / "export")
    export_model(run, tmp_path / "chosen", base=base)
    shard.write_bytes(content)
    # As versions before left it.
    (run / BASE_FILE).unlink()
    assert run_training(longer, resume=True) == 0
    assert list(read_base_checksums(run)) == [shard.name]
    (run / BASE_FILE).write_text('{"files": 3}')
    with pytest.raises(CheckpointError, match=f"{BASE_FILE}: damaged; remove it"):
        run_training(longer, resume=True)


def test_runs_that_need_their_base_again(tmp_path: Path, model: Path, data: Path) -> None:
    for settings, needed in (
        ({}, False),
        ({"lora__enabled": True}, True),
        ({"task": "dpo"}, True),
        ({"task": "dpo", "dpo__loss": "simpo"}, False),
    ):
        assert needs_base(make_config(tmp_path / "run", model, data, **settings)) == needed


def _other_model(model: Path, target: Path) -> Path:
    shutil.copytree(model, target)
    shard = next(target.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    return target


def test_damage_in_the_newest_checkpoint_costs_no_older_one(
    tmp_path: Path,
    model: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With checkpoint.keep: 1, and an end before the run reaches the step of the damaged one again."""
    settings = {"train__max_steps": 5, "checkpoint__save_every": 1, "checkpoint__keep": 9}
    whole, run = tmp_path / "whole", tmp_path / "run"
    run_training(make_config(whole, model, data, **settings))
    copy_at(whole, run, 4)
    shutil.rmtree(run / "checkpoint-000003")
    file = run / "checkpoint-000004" / "optimizer-00001-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    again = make_config(run, model, data, **settings | {"checkpoint__keep": 1})

    def fail() -> None:
        raise ErnieKitError("the machine is lost")

    with monkeypatch.context() as patch:
        at_step(3, patch, fail)
        with pytest.raises(ErnieKitError, match="the machine is lost"):
            run_training(again, resume=True)
    assert f"{run}/checkpoint-000004.damaged: renamed" in capsys.readouterr().out
    assert newest_checkpoint(run) == run / "checkpoint-000003"
    assert run_training(again, resume=True) == 0
    assert_same_run(whole, run)
    assert [path.name for path in run.glob("*checkpoint-*")] == ["checkpoint-000005"]


def test_a_terminal_that_closes_ends_the_run_with_a_checkpoint(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(2, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGHUP))
    assert run_training(make_config(tmp_path / "run", model, data, train__max_steps=5)) == 129
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-000003"
