"""Evaluations of a run by several processes: the answers, the figures and the decisions of a single one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.train.run import run_training
from tests.closeness import assert_close
from tests.distributed.layouts import trainings
from tests.distributed.processes import run
from tests.integration.training_setup import chats, make_config, make_model, read_log, write_chats

LAYOUTS: dict[str, dict[str, Any]] = {
    "DP2": {},
    "EP2": {"parallel.expert": 2},
    "CP2": {"parallel.context": 2},
    "ZeRO3": {"parallel.shard": "parameters", "train.recompute": True},
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("setting")
    return {
        "model.path": str(make_model(directory / "model")),
        "data.train": str(write_chats(directory / "chats.jsonl", chats(24))),
        "data.eval": str(write_chats(directory / "eval.jsonl", chats(7, seed=5))),
        "data.max_length": 160,
        "data.workers": 0,
        "data.cache_dir": str(directory / "cache"),
        "optimizer.learning_rate": 1e-3,
        "train.rows_per_step": 2,
        "train.max_steps": 5,
        "parallel.device": "cpu",
        "parallel.threads": 1,
        "train.eval_every": 1,
        "eval.samples": 5,
        "eval.batch": 2,
        "eval.temperature": 1.0,
        "eval.max_new_tokens": 5,
        "eval.best_metric": "eval/exact_match",
        "eval.patience": 2,
        "eval.min_delta": 1.0,
    }


@pytest.fixture(scope="module")
def runs(setting: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in every layout, by two processes, and by one in "alone"."""
    directory = tmp_path_factory.mktemp("runs")
    alone = {key.replace(".", "__"): value for key, value in setting.items()}
    model, data = Path(alone.pop("model__path")), Path(alone.pop("data__train"))
    assert run_training(make_config(directory / "alone", model, data, **alone)) == 0
    several = [
        {**setting, **dims, "train.output_dir": str(directory / name)} for name, dims in LAYOUTS.items()
    ]
    run(2, trainings, 2, several)
    return directory


@pytest.mark.parametrize("dims", LAYOUTS)
def test_answers_and_decisions_are_the_same(runs: Path, dims: str) -> None:
    alone, several = runs / "alone", runs / dims
    names = [f"step-{step:06d}.jsonl" for step in (1, 2, 3)]
    assert sorted(path.name for path in (several / "eval").iterdir()) == names
    for name in names:
        assert (several / "eval" / name).read_text() == (alone / "eval" / name).read_text()
    expected, found = ([line for line in read_log(path) if "eval/loss" in line] for path in (alone, several))
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [1, 2, 3]
    assert [line["eval/exact_match"] for line in found] == [line["eval/exact_match"] for line in expected]
    losses = [[line["eval/loss"] for line in lines] for lines in (found, expected)]
    assert_close(*losses)
    assert json.loads((several / "best.json").read_text()) == json.loads((alone / "best.json").read_text())
    kept = [sorted(path.name for path in run.glob("checkpoint-*")) for run in (alone, several)]
    assert kept[0] == kept[1]
