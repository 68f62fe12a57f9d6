"""Whole runs with task dpo: log, evaluation, resuming, and a reference from disk."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from erniekit.errors import CheckpointError, DataError
from erniekit.train.run import run_training
from tests.closeness import MODEL, assert_close
from tests.command import erniekit
from tests.integration.runs import assert_same_run, copy_at
from tests.integration.training_setup import chats, make_config, read_log, write_chats


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = []
    for number, sample in enumerate(chats(12)):
        question, answer = sample["messages"]
        samples.append({"messages": [question], "chosen": answer, "rejected": f"Say number {number}."})
    return write_chats(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", samples)


def train(run: Path, model: Path, data: Path, resume: bool = False, **settings: Any) -> list[dict[str, Any]]:
    cache = str(run.parent / "cache")
    defaults = {"task": "dpo", "data__cache_dir": cache, "train__epochs": 3, "data__eval": str(data)}
    assert run_training(make_config(run, model, data, **defaults | settings), resume=resume) == 0
    return read_log(run)


@pytest.mark.parametrize("lora", [True, False])
def test_a_run_learns_is_logged_and_can_be_resumed(
    tmp_path: Path, model: Path, pairs: Path, lora: bool
) -> None:
    settings = {"lora__enabled": lora, "checkpoint__save_every": 2, "checkpoint__keep": 9}
    log = train(tmp_path / "whole", model, pairs, **settings)
    steps = [line for line in log if "train/loss" in line]
    assert_close(steps[0]["train/loss"], math.log(2), MODEL)
    assert {"rewards/accuracy", "rewards/margin", "logps/chosen", "logps/kl"} <= set(steps[0])
    assert steps[-1]["train/loss"] < 0.69
    (evaluation,) = [line for line in log if "eval/loss" in line]
    assert evaluation["eval/rewards/accuracy"] > 0.5
    # The command finds the reference of the run, and gives what the run's evaluation has logged.
    run = tmp_path / "whole"
    for data in (["--data", pairs], ["--config", run / "config.yaml"]):
        ended = erniekit(
            "eval", run, *data, "--no-generate", "--json", tmp_path / "eval.json", "--device", "cpu"
        )
        assert ended.returncode == 0, ended.stderr
        assert "12 preference pairs: rewards with beta 0.1; the reference is " in ended.stdout
        assert f"reference is {'the model without its adapters' if lora else model}\n" in ended.stdout
        assert "preference accuracy" in ended.stdout
        figures = json.loads((tmp_path / "eval.json").read_text())["all"]
        assert figures["pairs"] == 12
        for name, value in figures["preference"].items():
            scale = abs(evaluation["eval/logps/chosen"])
            assert_close(value, evaluation[f"eval/{name}"], MODEL, scale=scale, what=name)
    copy_at(tmp_path / "whole", tmp_path / "part", 2)
    train(tmp_path / "part", model, pairs, resume=True, **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "part")


def test_a_reference_from_disk_gives_the_same_run(tmp_path: Path, model: Path, pairs: Path) -> None:
    live = train(tmp_path / "live", model, pairs)
    cached = train(tmp_path / "cached", model, pairs, dpo__reference="cached")
    for one, other in zip(live, cached, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() & {"train/loss", "rewards/margin", "eval/loss"}:
            # Differences of log-probabilities.
            scale = abs(other.get("logps/chosen", other.get("eval/logps/chosen")))
            assert_close(one[name], other[name], MODEL, scale=scale, what=name)


def test_chats_without_pairs_are_named(tmp_path: Path, model: Path, data: Path) -> None:
    with pytest.raises(
        DataError, match=r"train.jsonl:1: a sample of format messages without a rejected answer"
    ):
        train(tmp_path / "run", model, data)


def test_a_run_with_another_goal_is_refused_and_an_older_one_goes_on(
    tmp_path: Path, model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, settings = tmp_path / "run", {"train__max_steps": 1, "train__epochs": 1}
    train(run, model, pairs, **settings)
    others: dict[str, dict[str, Any]] = {
        'task: was "dpo", is now "sft"': {"task": "sft"},
        'dpo.loss: was "sigmoid", is now "hinge"': {"dpo__loss": "hinge"},
        "data.share_prompt: was true, is now false": {"data__share_prompt": False},
    }
    for message, change in others.items():
        with pytest.raises(CheckpointError) as caught:
            train(run, model, pairs, resume=True, **{**settings, **change})
        assert message in str(caught.value)
    # Settings that a user may change are reported.
    capsys.readouterr()
    train(run, model, pairs, resume=True, **settings, dpo__beta=0.2, dpo__reference="copy")
    printed = capsys.readouterr().out
    assert "  dpo.beta: None -> 0.2" in printed and "  dpo.reference: auto -> copy" in printed
    # A checkpoint from before these keys says the same by its configuration.
    file = run / "checkpoint-000001" / "trainer_state.json"
    state = json.loads(file.read_text())
    del state["checksum"]
    for key in ("task", "dpo.loss", "data.share_prompt"):
        del state["identity"][key]
    file.write_text(json.dumps(state))
    train(run, model, pairs, resume=True, **settings)
    with pytest.raises(CheckpointError, match=r"dpo\.loss: was"):
        train(run, model, pairs, resume=True, **settings, dpo__loss="hinge")


def test_pairs_without_a_run_are_scored_by_log_probabilities(
    tmp_path: Path, model: Path, pairs: Path
) -> None:
    def evaluate(*options: Any) -> tuple[dict[str, Any], str]:
        file = tmp_path / "eval.json"
        arguments = ("--data", pairs, "--json", file, "--device", "cpu", *options)
        ended = erniekit("eval", model, *arguments)
        assert ended.returncode == 0, ended.stderr
        return json.loads(file.read_text()), ended.stdout

    report, printed = evaluate("--no-generate")
    assert "there is no reference model" in printed and "there is no reference model" in report["pairs"]
    figures = report["all"]["preference"]
    difference = figures["logps/chosen"] - figures["logps/rejected"]
    assert_close(figures["rewards/margin"], difference, MODEL, scale=abs(figures["logps/chosen"]))
    # Of a pair only the chosen answer counts for the loss, and is the reference of the generated one.
    answered, printed = evaluate("--limit", 2, "--max-new-tokens", 2)
    assert answered["all"]["samples"] == answered["all"]["answers"] == answered["all"]["pairs"] == 2
    chosen = -answered["all"]["loss"] * answered["all"]["loss_tokens"] / 2
    assert_close(answered["all"]["preference"]["logps/chosen"], chosen, MODEL)


def test_a_reference_that_is_gone_is_named(tmp_path: Path, model: Path, pairs: Path) -> None:
    base = shutil.copytree(model, tmp_path / "base")
    train(tmp_path / "run", base, pairs, train__epochs=1, data__eval=[])
    shutil.rmtree(base)
    ended = erniekit("eval", tmp_path / "run", "--data", pairs, "--no-generate", "--device", "cpu")
    assert ended.returncode == 1
    assert "the reference model of its run" in ended.stderr and str(base) in ended.stderr
