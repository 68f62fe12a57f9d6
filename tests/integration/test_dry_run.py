"""`erniekit train --dry-run`: what it prints, and that it writes nothing."""

from pathlib import Path

import pytest

from erniekit.errors import CheckpointError, ConfigError
from erniekit.models.config import ErnieConfig
from erniekit.models.factory import parameter_specs
from erniekit.train.dry_run import dry_run_training
from erniekit.train.run import run_training
from tests.integration.training_setup import make_config


def test_dry_run_tells_everything_and_writes_nothing(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = make_config(run, model, data, train__epochs=3, schedule__warmup_ratio=0.1)
    before = sorted(tmp_path.rglob("*"))
    dry_run_training(config)
    printed = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert "  learning_rate: 0.001" in printed
    assert "training data: 16 samples" in printed
    assert "template ernie_vl" in printed
    assert "(3 epochs), 2 rows each" in printed
    specs = parameter_specs(ErnieConfig.from_dir(model))
    assert f"parameters: {sum(spec.size for spec in specs):,}, trained" in printed
    assert "memory: weights" in printed


def test_dry_run_with_lora_says_what_training_says(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(
        tmp_path / "run", model, data, train__max_steps=1, lora__enabled=True, model__freeze=["vision"]
    )
    dry_run_training(config)
    planned = capsys.readouterr().out.splitlines()
    run_training(config)
    done = capsys.readouterr().out.splitlines()
    table = [line for line in done if line.startswith(("LoRA", "  model.", "parameters", "memory", "steps"))]
    assert len(table) > 8
    assert set(table) <= set(planned)


def test_dry_run_for_several_processes(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {"parallel__expert": 2, "train__rows_per_step": 4}
    printed = []
    for shard in ("none", "optimizer"):
        config = make_config(tmp_path / "run", model, data, parallel__shard=shard, **shared)
        dry_run_training(config, processes=4)
        printed.append(capsys.readouterr().out)
        assert "processes: 4; expert parallel degree 2\n" in printed[-1]
        assert "memory of each of 4 processes: weights" in printed[-1]
    assert printed[0].split("optimizer ")[-1] != printed[1].split("optimizer ")[-1]
    with pytest.raises(ConfigError, match=r"parallel\.expert is 2, which does not divide the 3 processes"):
        dry_run_training(config, processes=3)


def test_dry_run_without_model_and_data(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = make_config(tmp_path / "run", tmp_path / "no-model", tmp_path / "no.jsonl", train__max_steps=5)
    dry_run_training(absent, no_weights=True)
    printed = capsys.readouterr().out
    assert "not checked: the model" in printed
    assert "not checked: the data" in printed
    with pytest.raises(CheckpointError, match="no-model"):
        dry_run_training(absent)

    some = make_config(tmp_path / "run", model, tmp_path / "no.jsonl", train__max_steps=5)
    dry_run_training(some, no_weights=True)
    printed = capsys.readouterr().out
    assert "parameters: " in printed
    assert "no.jsonl not there" in printed
    assert "not checked: the weights" in printed
