"""`erniekit plan`, and its form in the dry run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from erniekit.cli.plan import plan
from erniekit.cli.train import train
from erniekit.errors import ConfigError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {path: baidu/ERNIE-4.5-0.3B-PT}\ndata: {train: t.jsonl, max_length: 8192}\n"
        f"train: {{output_dir: {tmp_path / 'out'}, rows_per_step: 4}}\n"
    )
    return file


def test_a_plan_needs_no_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(run, None, gpus=4, gpu="h100-80gb")
    printed = capsys.readouterr().out
    assert "parameters: 360,748,032, trained 360,748,032 (100.00%)" in printed
    assert "4 GPUs h100-80gb: 4 sequences of 8,192 tokens a step" in printed
    for part in (
        "weights",
        "gradients",
        "optimizer",
        "communication",
        "activations",
        "reserve",
        "assumed 8%",
    ):
        assert part in printed
    assert "fits, with" in printed and "tokens/s" in printed
    assert "measured on h200-141gb, scaled by data sheets" in printed


def test_what_does_not_fit_and_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["data.max_length=131072"]
    plan(run, settings, gpus=1, gpu="rtx4090-24gb")
    assert "does not fit: it lacks" in capsys.readouterr().out
    plan(run, settings, gpus=1, gpu="rtx4090-24gb", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False and sum(found["memory"].values()) == found["peak"] > found["usable"]
    assert found["changes"][0]["overrides"] and found["changes"][0]["peak"] <= found["usable"]
    assert found["step_seconds"] > 0 and found["changes"][0]["tokens_per_second"] > 0


def test_the_search_prints_overrides(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(run, None, gpus=2, gpu="l40s-48gb", search=True)
    printed = capsys.readouterr().out
    assert "The fastest layouts of 2 GPUs that fit:" in printed and "train.recompute=" in printed
    # The search is for users whose configuration has another number of GPUs, too.
    plan(run, ["parallel.context=4"], gpus=2, gpu="l40s-48gb", search=True)
    printed = capsys.readouterr().out
    assert (
        "the layout of the configuration: " in printed
        and "The fastest layouts of 2 GPUs that fit:" in printed
    )


def test_the_dry_run_plans_for_other_gpus(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(run, ["parallel.shard=optimizer"], dry_run=True, no_weights=True, gpus=2, gpu="a100-40gb")
    printed = capsys.readouterr().out
    assert "2 GPUs a100-40gb" in printed and "Nothing was trained" in printed


def test_bad_input(run: Path) -> None:
    with pytest.raises(ConfigError, match="no such GPU"):
        plan(run, None, gpu="none")
    with pytest.raises(ConfigError, match="is not the name of a release"):
        plan(run, ["model.path=mine"])
    with pytest.raises(ConfigError, match=r"rows_per_step is 4, which is not a multiple of 3"):
        plan(run, None, gpus=3)
