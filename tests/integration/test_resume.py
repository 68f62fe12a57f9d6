"""A resumed run is the run that never stopped: the same losses and weights, bit by bit; or it is refused."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from erniekit.checkpoint import state
from erniekit.checkpoint.base import BASE_FILE, read_base_checksums
from erniekit.checkpoint.state import newest_checkpoint
from erniekit.config import load_config
from erniekit.errors import CheckpointError, ErnieKitError
from erniekit.export.export import export_model
from erniekit.train.build_dpo import needs_base
from erniekit.train.run import run_training
from tests.integration.runs import assert_same_run, at_step, copy_at
from tests.integration.training_setup import chats, losses, make_config, read_log, write_chats

FULL: dict[str, Any] = {}
LORA = {"lora__enabled": True, "lora__dropout": 0.2, "lora__train_router": True}


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
