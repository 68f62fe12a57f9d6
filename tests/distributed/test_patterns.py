"""Patterns that name single experts, which only some of the processes hold, or the experts of one modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from erniekit.errors import ConfigError
from erniekit.optim.adamw import AdamW, GroupRule
from tests.checkpoints import tensors
from tests.distributed.layouts import trainings
from tests.distributed.processes import run
from tests.distributed.settings import assert_same, vl_setting

FIRST = "*.mlp.experts.0.*"
VISION = "*.mlp.experts.[4-7].*"
STEPS = 2
LORA = {"lora.enabled": True, "lora.rank": 2}
# By name: what the configuration says.
CHOICES: dict[str, dict[str, Any]] = {
    "adapters": LORA | {"lora.targets": ["q_proj", f"model.layers{FIRST}"]},
    "adapters of one process": LORA | {"lora.targets": [f"model.layers{FIRST}"]},
    "frozen": {"model.freeze": [VISION]},
    "groups": {"optimizer.groups": [{"match": VISION, "learning_rate_ratio": 0.5}]},
}
LAYOUTS = [(2, "none"), (2, "parameters"), (4, "gradients")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("patterns")


@pytest.fixture(scope="module")
def setting(directory: Path) -> dict[str, Any]:
    found = {key: value for key, value in vl_setting(directory).items() if not key.startswith("loss.")}
    return found | {"train.max_steps": STEPS}


def one(directory: Path, setting: dict[str, Any], name: str, world: int, shard: str) -> dict[str, Any]:
    own: dict[str, Any] = {
        "train.output_dir": str(directory / f"{name} {world} {shard}"),
        "parallel.shard": shard,
    }
    own |= {"parallel.expert": min(world, 2), "train.recompute": shard == "parameters"}
    return setting | CHOICES[name] | own


def test_patterns_over_experts_train_the_same_on_every_layout(
    directory: Path, setting: dict[str, Any]
) -> None:
    for world in (1, 2, 4):
        shards = ["none"] if world == 1 else [shard for count, shard in LAYOUTS if count == world]
        runs = [one(directory, setting, name, world, shard) for name in CHOICES for shard in shards]
        run(world, trainings, world, runs)
    for name in CHOICES:
        alone = directory / f"{name} 1 none"
        for world, shard in LAYOUTS:
            assert_same(alone, directory / f"{name} {world} {shard}", STEPS)
    only = [name for name in tensors(directory / "adapters of one process 4 gradients") if "lora" in name]
    assert only and all(".mlp.experts.0." in name for name in only)


def test_an_optimizer_without_parameters_is_for_processes_of_a_run_that_has_some() -> None:
    rules = [GroupRule("a*")]
    optimizer = AdamW([], rules=rules, all_names=["a.weight"])
    optimizer.step(0.1)
    assert optimizer.steps_done == 1 and optimizer.state_tensors() == {}
    with pytest.raises(ConfigError, match=r"'b\*' matches no trained parameter; names are like a\.weight"):
        AdamW([], rules=[GroupRule("b*")], all_names=["a.weight"])
    with pytest.raises(ConfigError, match="nothing to train"):
        AdamW([], all_names=[])
