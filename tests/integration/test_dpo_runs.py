"""Whole runs with task dpo: log, evaluation, resuming, and a reference from disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from erniekit.errors import CheckpointError, DataError
from erniekit.train.run import run_training
from tests.closeness import MODEL, assert_close
from tests.integration.test_resume import assert_same_run, copy_at
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
