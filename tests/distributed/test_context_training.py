"""Runs whose rows two processes share, a row a step: adapters, preferences, and with spread weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.hub import read_array, read_header
from erniekit.checkpoint.state import newest_checkpoint
from erniekit.train.run import run_training
from tests.closeness import MODEL, assert_all_close, assert_close
from tests.distributed.layouts import trainings
from tests.distributed.processes import run
from tests.integration.training_setup import chats, make_config, make_model, read_log, write_chats

STEPS = 3
LOSSES = {"loss.balance_weight": 0.01, "loss.z_weight": 0.001, "loss.orthogonal_weight": 0.01}
LORA = {"lora.enabled": True, "lora.rank": 4, "lora.train_router": True, "train.recompute": True}
SPREAD = {"parallel.shard": "parameters"}
# What is trained, and what else the two processes share beside each row.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adapters": ({**LORA, **LOSSES}, {"parallel.expert": 2}),
    "spread": ({**LOSSES, "train.recompute": True}, SPREAD),
    # The lower layer is frozen, and has no backward pass: not on any process, whatever they exchange in the upper one.
    "upper": (
        {"lora.enabled": True, "lora.targets": ["model.layers.1.*"], "train.recompute": "auto"},
        {"parallel.expert": 2, **SPREAD},
    ),
    "preferences": ({"task": "dpo", **LORA, "loss.balance_weight": 0.01}, {"parallel.expert": 2}),
    "cached": ({"task": "dpo", "dpo.reference": "cached", "dpo.sft_weight": 0.5}, {}),
    # The main process computes the reference with a whole model beside its share of the one that is trained.
    "cached-spread": (
        {"task": "dpo", "dpo.reference": "cached", "train.recompute": True},
        {"parallel.expert": 2, **SPREAD},
    ),
    "cached-adapters": ({"task": "dpo", "dpo.reference": "cached", **LORA}, {"parallel.expert": 2}),
}
CLOSE = {
    "train/gradient_norm",
    "rewards/margin",
    "logps/kl",
    "router/z_loss/text",
    "router/balance_loss/vision",
}
SAME = {"train/tokens_seen", "train/loss_tokens", "data/unused_positions", "expert_load/text/max"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case by one process, in "name-1", and by two, in "name-2"."""
    directory = tmp_path_factory.mktemp("runs")
    samples = []
    for number, sample in enumerate(chats(12)):
        question, answer = sample["messages"]
        samples.append({"messages": [question], "chosen": answer, "rejected": f"Say number {number}."})
    model = make_model(directory / "model")
    data = write_chats(directory / "pairs.jsonl", samples)
    several = []
    for name, (settings, dims) in CASES.items():
        common = {
            **settings,
            "data.eval": str(data),
            "data.workers": 0,
            # Where a gradient is nothing but rounding, Adam would still take a whole step in its direction.
            "optimizer.epsilon": 1e-3,
            "train.max_steps": STEPS,
            "train.rows_per_step": 1,
        }
        alone = {key.replace(".", "__"): value for key, value in common.items()}
        cache = directory / f"{name}-1.cache"
        config = make_config(directory / f"{name}-1", model, data, **alone, data__cache_dir=str(cache))
        assert run_training(config) == 0
        common |= {"model.path": str(model), "data.train": str(data), "data.max_length": 160, **dims}
        common |= {"train.output_dir": str(directory / f"{name}-2"), "parallel.context": 2}
        common |= {"optimizer.learning_rate": 1e-3, "data.cache_dir": str(directory / f"{name}-2.cache")}
        several.append(common | {"parallel.device": "cpu", "parallel.threads": 1})
    run(2, trainings, 2, several)
    return directory


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(runs: Path, case: str) -> None:
    """The figures of every step, of the evaluation, and the weights."""
    one, two = runs / f"{case}-1", runs / f"{case}-2"
    log, found = read_log(one), read_log(two)
    assert len(log) == len(found) == STEPS + 1
    for expected, line in zip(log, found, strict=True):
        assert expected.keys() == line.keys()
        for name in SAME & expected.keys():
            assert line[name] == expected[name], (line["step"], name)
    steps, others = columns(log[:-1]), columns(found[:-1])
    evaluation, other = columns(log[-1:]), columns(found[-1:])
    for expected, line, prefix in ((steps, others, ""), (evaluation, other, "eval/")):
        # Rewards and their margins are differences of log-probabilities.
        scale = np.linalg.norm(expected.get(f"{prefix}logps/chosen", [0.0]))
        for name, values in expected.items():
            if name.endswith("/loss") or name in CLOSE or (prefix and name.startswith(prefix)):
                assert_close(line[name], values, MODEL, scale=scale if "s/" in name else 0.0, what=name)
    assert_all_close(weights_of(two), weights_of(one))


def columns(lines: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Each figure over all lines, without times."""
    return {name: [line[name] for line in lines] for name in lines[0] if name not in ("time", "eval/seconds")}


def weights_of(run: Path) -> dict[str, np.ndarray]:
    """Weights or adapters of the newest checkpoint."""
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    files = [file for file in checkpoint.glob("*.safetensors") if "optimizer" not in file.name]
    return {name: read_array(info) for file in files for name, info in read_header(file).items()}
