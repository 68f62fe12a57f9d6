"""The same training on any layout, whatever is spread: losses, weights and the optimizer's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.distributed.layouts import trainings
from tests.distributed.processes import run
from tests.distributed.settings import assert_same, vl_setting
from tests.integration.training_setup import chats, write_chats

SHARDS = ("none", "optimizer", "gradients", "parameters")


class Case(NamedTuple):
    """Processes, those that share the experts and each row, what is spread, and the rows of a step."""

    world: int
    expert: int
    context: int
    shard: str
    rows: int
    lora: bool

    @property
    def name(self) -> str:
        """Such as "DP2-EP2-gradients-4"."""
        data = self.world // self.context
        method = "lora" if self.lora else "full"
        return f"{method}-DP{data}-EP{self.expert}-CP{self.context}-{self.shard}-{self.rows}"

    def settings(self, directory: Path) -> dict[str, Any]:
        """The configuration's keys that are its own."""
        return {
            "train.output_dir": str(directory / self.name),
            "train.rows_per_step": self.rows,
            "train.recompute": self.shard == "parameters",
            "parallel.threads": 1,
            "parallel.expert": self.expert,
            "parallel.context": self.context,
            "parallel.shard": self.shard,
        }


# Of the 4 rows of a step a process has 4 (where it shares each), 2 or 1.
CASES = [
    Case(world, expert, context, shard, 4, lora)
    for lora in (False, True)
    for world, expert, context in ((2, 1, 1), (2, 2, 1), (2, 1, 2), (2, 2, 2), (4, 4, 1), (4, 2, 1))
    for shard in SHARDS
] + [Case(4, 2, 2, "optimizer", 4, True), Case(4, 2, 2, "parameters", 4, False)]


def keys(setting: dict[str, Any], lora: bool) -> dict[str, Any]:
    """Router losses in full training; with adapters routers are frozen, and the vision tower has adapters, too."""
    if not lora:
        return setting
    kept = {key: value for key, value in setting.items() if not key.startswith("loss.")}
    return kept | {"lora.enabled": True, "lora.rank": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all runs."""
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def setting(runs: Path) -> dict[str, Any]:
    """Short rows: a step costs little but its collectives."""
    return vl_setting(runs) | {"data.max_length": 160}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("world", [2, 4])
def test_training_is_the_same(runs: Path, setting: dict[str, Any], world: int, lora: bool) -> None:
    """All cases of as many processes, which go from one to the next, against one process."""
    alone = Case(1, 1, 1, "none", 4, lora)
    cases = [case for case in CASES if (case.world, case.lora) == (world, lora)]
    chosen = keys(setting, lora)
    if not (runs / alone.name).exists():
        run(1, trainings, 1, [chosen | alone.settings(runs)])
    run(world, trainings, world, [chosen | case.settings(runs) for case in cases])
    for case in cases:
        assert_same(runs / alone.name, runs / case.name)


# Preferences: a frozen copy of the model, spread as the model is, or the model without its adapters.
PAIRS = [
    Case(2, 1, 1, "optimizer", 4, False),
    Case(2, 2, 1, "gradients", 4, True),
    Case(4, 2, 1, "parameters", 4, False),
    Case(4, 2, 2, "parameters", 4, True),
]


def test_preferences_are_learnt_the_same(tmp_path: Path) -> None:
    samples = []
    for number, sample in enumerate(chats(24)):
        question, answer = sample["messages"]
        samples.append({"messages": [question], "chosen": answer, "rejected": f"Say number {number}."})
    pairs = str(write_chats(tmp_path / "pairs.jsonl", samples))
    setting = vl_setting(tmp_path) | {"task": "dpo", "data.train": pairs}
    del setting["loss.orthogonal_weight"]
    alone = [Case(1, 1, 1, "none", 4, lora) for lora in (False, True)]
    for world in (1, 2, 4):
        cases = [case for case in [*alone, *PAIRS] if case.world == world]
        chosen = [keys(setting, case.lora) | case.settings(tmp_path) for case in cases]
        run(world, trainings, world, chosen)
    for case in PAIRS:
        assert_same(tmp_path / alone[case.lora].name, tmp_path / case.name)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A case on up to 4 processes."""
    world = draw(st.integers(2, 4))
    context = draw(st.sampled_from([n for n in (1, 2) if world % n == 0]))
    expert = draw(st.sampled_from([n for n in (1, 2, 4) if world % n == 0]))
    rows = world // context * draw(st.integers(1, 3))
    return Case(world, expert, context, draw(st.sampled_from(SHARDS)), rows, draw(st.booleans()))


@settings(max_examples=4, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(cases(), st.integers(160, 400), st.sampled_from(["tokens", "token_balanced"]), st.integers(0, 99))
def test_random_layouts_train_the_same(
    tmp_path_factory: pytest.TempPathFactory, case: Case, length: int, normalization: str, seed: int
) -> None:
    directory = tmp_path_factory.mktemp("random")
    alone = case._replace(world=1, expert=1, context=1, shard="none")
    own = {
        "data.max_length": length,
        "loss.normalization": normalization,
        "train.seed": seed,
        "train.max_steps": 3,
    }
    setting = keys(vl_setting(directory) | own, case.lora)
    for one in (alone, case):
        run(one.world, trainings, one.world, [setting | one.settings(directory)])
    assert_same(directory / alone.name, directory / case.name, steps=3)
