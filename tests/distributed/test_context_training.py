"""Runs whose rows two processes share: adapters and preferences, through the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.hub import read_array, read_header
from erniekit.checkpoint.state import newest_checkpoint
from erniekit.train.job import run_training
from tests.integration.training_setup import chats, make_config, make_model, read_log, write_chats

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
LOSSES = {"loss.balance_weight": 0.01, "loss.z_weight": 0.001, "loss.orthogonal_weight": 0.01}
LORA = {"lora.enabled": True, "lora.rank": 4, "lora.train_router": True, "train.recompute": True}
# A row a step; and whether the two processes share the experts as well.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "adapters": ({**LORA, **LOSSES}, 2),
    "preferences, adapters": ({"task": "dpo", **LORA, "loss.balance_weight": 0.01}, 2),
    "preferences, cached": ({"task": "dpo", "dpo.reference": "cached", "dpo.sft_weight": 0.5}, 1),
}
FIGURES = {
    "train/loss",
    "train/gradient_norm",
    "eval/loss",
    "rewards/margin",
    "logps/kl",
    "router/z_loss/text",
}
FIGURES |= {"train/tokens_seen", "data/unused_positions", "router/balance_loss/text", "eval/logps/kl"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "vl")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = []
    for number, sample in enumerate(chats(24)):
        question, answer = sample["messages"]
        samples.append({"messages": [question], "chosen": answer, "rejected": f"Say number {number}."})
    return write_chats(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", samples)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(tmp_path: Path, model: Path, pairs: Path, case: str) -> None:
    settings, expert = CASES[case]
    settings = {
        **settings,
        "data.eval": str(pairs),
        "data.cache_dir": str(tmp_path / "cache"),
        "data.workers": 0,
        "optimizer.epsilon": 1e-3,
        "train.max_steps": STEPS,
        "train.rows_per_step": 1,
    }
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    config = make_config(
        one, model, pairs, **{key.replace(".", "__"): value for key, value in settings.items()}
    )
    assert run_training(config) == 0
    make_config(two, model, pairs)
    chosen = json.loads(config.model_dump_json())
    finished = run_command(two, chosen, {"expert": expert, "context": 2})
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert_same(one, two)


def run_command(
    run: Path, settings: dict[str, Any], parallel: dict[str, int]
) -> subprocess.CompletedProcess[str]:
    """Train on two processes."""
    settings["train"]["output_dir"] = str(run)
    settings["parallel"] |= parallel
    file = run.parent / "run.yaml"
    file.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "erniekit", "train", str(file), "--devices", "cpu:2"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def assert_same(one: Path, other: Path) -> None:
    """Losses within 1e-5 relative, other figures nearly, weights within 1e-5."""
    log, found = read_log(one), read_log(other)
    assert len(log) == len(found) == STEPS + 1
    for expected, line in zip(log, found, strict=True):
        assert expected.keys() == line.keys()
        for name in expected.keys() & FIGURES:
            rel, abs = (1e-5, 1e-7) if name.endswith("/loss") else (1e-3, 1e-5)
            assert line[name] == pytest.approx(expected[name], rel=rel, abs=abs), (line["step"], name)
    weights, others = weights_of(one), weights_of(other)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        np.testing.assert_allclose(others[name], weight, rtol=0, atol=1e-5, err_msg=name)


def weights_of(run: Path) -> dict[str, np.ndarray]:
    """Weights or adapters of the newest checkpoint."""
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    files = [file for file in checkpoint.glob("*.safetensors") if "optimizer" not in file.name]
    return {name: read_array(info) for file in files for name, info in read_header(file).items()}
