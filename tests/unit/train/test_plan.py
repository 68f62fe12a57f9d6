"""Sums and words of a plan."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from erniekit.config import Config, load_config
from erniekit.data.dataset import DataStats
from erniekit.lora.targets import LoraMatch
from erniekit.models.specs import TensorSpec
from erniekit.train.plan import (
    describe_data,
    describe_lora,
    describe_model,
    describe_run,
    plan_model,
    plan_run,
    size,
)
from erniekit.train.schedule import Schedule

SPECS = [TensorSpec("a", "BF16", (10, 10)), TensorSpec("b", "BF16", (50,)), TensorSpec("router", "F32", (5,))]


def config(tmp_path: Path, *overrides: str) -> Config:
    file = tmp_path / "x.yaml"
    file.write_text("{model: {path: m}, data: {train: d, max_length: 100}, train: {output_dir: o}}")
    return load_config(file, overrides)


def loader(*rows: int) -> Any:
    dataset = SimpleNamespace(lengths=[60, 40, 80])
    return SimpleNamespace(rows_per_epoch=lambda epoch: rows[epoch], dataset=dataset)


def test_steps_of_all_epochs_are_rounded_up(tmp_path: Path) -> None:
    settings = config(tmp_path, "train.epochs=3", "train.rows_per_step=4", "schedule.warmup_ratio=0.5")
    plan = plan_run(settings, loader(3, 2, 4))
    assert (plan.total_steps, plan.epochs, plan.rows, plan.tokens) == (3, 3, 3, 180)
    assert plan.schedule == Schedule("cosine", 1e-5, 0.0, 3, 2, 0.1)


def test_max_steps_wins(tmp_path: Path) -> None:
    plan = plan_run(config(tmp_path, "train.max_steps=7", "train.epochs=3"), loader(3, 2, 4))
    assert (plan.total_steps, plan.epochs) == (7, None)


def test_the_run_in_words(tmp_path: Path) -> None:
    settings = config(tmp_path, "train.max_steps=7", "train.rows_per_step=2", "schedule.type=constant")
    assert describe_run(plan_run(settings, loader(2)), settings, "ernie_vl") == [
        "rows: template ernie_vl; 2 rows an epoch, of at most 100 tokens, 90.0% full",
        "steps: 7 (train.max_steps), 2 row(s) each, about 180 tokens; an epoch is 1.0 steps",
        "learning rate: 1e-05, 0 steps of warm-up, then constant",
    ]


@pytest.mark.parametrize(("rows", "gradients"), [(1, 200 + 20), (2, 200 + 400 + 20)])
def test_memory(rows: int, gradients: int) -> None:
    plan = plan_model(SPECS, ["a", "router"], rows_per_step=rows)
    assert (plan.parameters, plan.trained) == (155, 105)
    assert plan.weight_bytes == 200 + 100 + 20
    assert plan.gradient_bytes == gradients
    assert plan.optimizer_bytes == 100 * 12 + 5 * 8
    assert describe_model(plan)[0] == "parameters: 155, trained 105 (67.74%)"


def test_data_in_words() -> None:
    stats = DataStats(samples=1200, tokens=10_000, loss_tokens=2_500, longest=99)
    assert describe_data("training data", stats) == [
        "training data: 1,200 samples, 10,000 tokens, 2,500 with loss (25.0%); longest sample 99 tokens"
    ]
    stats.images, stats.vision_tokens, stats.skipped = 7, 28, Counter({"too long": 2, "bad image": 1})
    assert describe_data("x", stats)[1:] == [
        "  7 pictures, 28 vision tokens",
        "  3 samples skipped (too long: 2, bad image: 1)",
    ]


def test_adapters_in_a_table() -> None:
    matches = [LoraMatch(f"model.layers.{layer}.self_attn.q_proj", 8, 8, 64) for layer in range(3)]
    matches.append(LoraMatch("model.layers.0.mlp.experts.11.up_proj", 8, 4, 48))
    assert describe_lora(matches, 4) == [
        "LoRA of rank 4 on 4 modules:",
        "  model.layers.*.self_attn.q_proj            3 x           192 parameters",
        "  model.layers.*.mlp.experts.*.up_proj       1 x            48 parameters",
    ]


def test_sizes_in_words() -> None:
    found = [size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30, 5000 << 30)]
    assert found == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "5000.0 GiB"]
