"""The same training on any layout, whatever is sharded: losses, weights and the optimizer's state."""

from __future__ import annotations

import shutil
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.closeness import MODEL, assert_close
from tests.distributed.layouts import trainings
from tests.distributed.processes import run
from tests.distributed.settings import STEPS, assert_same, vl_setting
from tests.integration.training_setup import chats, losses, read_log, write_chats

pytestmark = pytest.mark.slow
SHARDS = ("none", "optimizer", "gradients", "parameters")
METHODS = ("full", "lora")
TASKS = ("sft", "dpo")


class Case(NamedTuple):
    """Rows trained at once, processes that share the experts, those that share each row, and what is sharded."""

    data: int
    expert: int
    context: int
    shard: str
    method: str
    task: str

    @property
    def world(self) -> int:
        return self.data * self.context

    @property
    def name(self) -> str:
        """Such as "sft-full-DP2-EP2-CP1-gradients"."""
        dims = f"DP{self.data}-EP{self.expert}-CP{self.context}"
        return f"{self.task}-{self.method}-{dims}-{self.shard}"

    @property
    def baseline(self) -> Case:
        """The same training in one process."""
        return Case(1, 1, 1, "none", self.method, self.task)


# Every pair of values that can occur together does. Of the 4 rows of a step a process has 4, 2 or 1, or parts of them.
CASES = [
    Case(1, 1, 2, "none", "lora", "sft"),
    Case(1, 1, 2, "parameters", "lora", "dpo"),
    Case(1, 2, 2, "gradients", "full", "dpo"),
    Case(1, 2, 2, "optimizer", "full", "sft"),
    Case(2, 1, 1, "gradients", "lora", "dpo"),
    Case(2, 2, 1, "parameters", "full", "sft"),
    Case(2, 2, 2, "none", "full", "sft"),
    Case(2, 4, 2, "optimizer", "lora", "sft"),
    Case(2, 4, 2, "parameters", "full", "dpo"),
    Case(4, 1, 1, "optimizer", "full", "dpo"),
    Case(4, 2, 1, "parameters", "lora", "sft"),
    Case(4, 4, 1, "gradients", "full", "sft"),
    Case(4, 4, 1, "none", "full", "dpo"),
]
SAVED = Case(2, 2, 1, "parameters", "full", "sft")  # in the middle, too
CONTINUED = [
    Case(1, 1, 1, "none", "full", "sft"),
    Case(2, 1, 1, "parameters", "full", "sft"),
    Case(2, 2, 2, "optimizer", "full", "sft"),
]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return vl_setting(tmp_path_factory.mktemp("setting"))


def settings_of(case: Case, setting: dict[str, Any], directory: Path) -> dict[str, Any]:
    """With router losses in full training; with adapters routers are frozen, and the vision tower has adapters, too."""
    chosen = setting | {
        "train.output_dir": str(directory / case.name),
        "train.recompute": case.shard == "parameters",
        "parallel.expert": case.expert,
        "parallel.context": case.context,
        "parallel.shard": case.shard,
    }
    if case.method == "lora":
        chosen = {key: value for key, value in chosen.items() if not key.startswith("loss.")}
        chosen |= {"lora.enabled": True, "lora.rank": 4}
    if case.task == "dpo":
        chosen.pop("loss.orthogonal_weight", None)
        pairs = str(Path(setting["model.path"]).parent / "pairs.jsonl")
        chosen |= {"task": "dpo", "data.train": pairs}
    return chosen


@pytest.fixture(scope="module")
def runs(setting: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case and its baseline, in a directory of its name. The processes go from one case to the next."""
    directory = tmp_path_factory.mktemp("runs")
    samples = []
    for number, sample in enumerate(chats(24)):
        question, answer = sample["messages"]
        samples.append({"messages": [question], "chosen": answer, "rejected": f"Say number {number}."})
    write_chats(Path(setting["model.path"]).parent / "pairs.jsonl", samples)
    cases = list(dict.fromkeys([*(case.baseline for case in CASES), *CASES]))
    for world in (1, 2, 4):
        chosen = [case for case in cases if case.world == world]
        run(world, trainings, world, [_saved(case, setting, directory) for case in chosen])
    return directory


def _saved(case: Case, setting: dict[str, Any], directory: Path) -> dict[str, Any]:
    every = STEPS - 1 if case == SAVED else None
    return settings_of(case, setting, directory) | {"checkpoint.save_every": every, "checkpoint.keep": 9}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_training_is_the_same(runs: Path, case: Case) -> None:
    one, several = runs / case.baseline.name, runs / case.name
    assert_same(one, several)
    assert_close(_flops(several) * case.world, _flops(one), what="FLOPs")


def _flops(run: Path) -> np.ndarray:
    """FLOPs of each step per process, as a share of the peak."""
    return np.array([line["train/mfu"] * line["train/step_seconds"] for line in read_log(run)])


def test_every_pair_of_choices_is_among_the_cases() -> None:
    choices = product((1, 2, 4), (1, 2, 4), (1, 2), SHARDS, METHODS, TASKS)
    possible = [case for case in map(Case._make, choices) if case.world in (2, 4)]
    possible = [case for case in possible if case.world % case.expert == 0]
    assert set(CASES) <= set(possible)

    def pairs(cases: list[Case]) -> set[Any]:
        return {pair for case in cases for pair in combinations(zip(case._fields, case, strict=True), 2)}

    assert not pairs(possible) - pairs(CASES)


def test_a_checkpoint_continues_in_any_layout(runs: Path, setting: dict[str, Any], tmp_path: Path) -> None:
    """Some steps in one layout, the rest in another: as if it had never changed. In the last, one process writes."""
    for case in CONTINUED:
        again = shutil.copytree(runs / SAVED.name, tmp_path / case.name)
        shutil.rmtree(again / f"checkpoint-{STEPS:06d}")
    for world in (1, 2, 4):
        chosen = [
            settings_of(case, setting, tmp_path) | {"checkpoint.shared": case != CONTINUED[-1]}
            for case in CONTINUED
            if case.world == world
        ]
        run(world, trainings, world, chosen, True)
    for case in CONTINUED:
        assert_same(runs / SAVED.baseline.name, tmp_path / case.name)
        files = sorted(
            file.name for file in (tmp_path / case.name / f"checkpoint-{STEPS:06d}").glob("*.safetensors")
        )
        count = case.world if case != CONTINUED[-1] else 1
        kinds = [
            f"{kind}-{number:05d}-of-{count:05d}.safetensors"
            for kind in ("model", "optimizer")
            for number in range(1, count + 1)
        ]
        assert files == kinds


def test_epochs_end_with_a_shorter_step_on_every_layout(setting: dict[str, Any], tmp_path: Path) -> None:
    """The last step has rows for some processes only; the others keep step with rows without a sample."""
    data = write_chats(tmp_path / "chats.jsonl", chats(20))
    short = setting | {"data.train": str(data), "train.max_steps": None, "train.epochs": 2}
    cases = [
        Case(data, expert, context, "none", "full", "sft") for data, expert, context in ((4, 2, 1), (2, 2, 2))
    ]
    run(1, trainings, 1, [settings_of(cases[0].baseline, short, tmp_path)])
    run(4, trainings, 4, [settings_of(case, short, tmp_path) for case in cases])
    for case in cases:
        expected, found = (np.asarray(losses(tmp_path / one.name))[:, 1] for one in (case.baseline, case))
        assert_close(found, expected, MODEL)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A case on up to 4 processes."""
    world = draw(st.integers(2, 4))
    context = draw(st.sampled_from([n for n in (1, 2) if world % n == 0]))
    expert = draw(st.sampled_from([n for n in (1, 2, 4) if world % n == 0]))
    shard, method = draw(st.sampled_from(SHARDS)), draw(st.sampled_from(METHODS))
    return Case(world // context, expert, context, shard, method, "sft")


@settings(max_examples=3, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(
    cases(),
    st.integers(1, 3),
    st.integers(160, 240),
    st.sampled_from(["tokens", "token_balanced"]),
    st.integers(0, 99),
)
def test_random_layouts_train_the_same(
    setting: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    case: Case,
    rows: int,
    length: int,
    normalization: str,
    seed: int,
) -> None:
    directory = tmp_path_factory.mktemp("random")
    drawn = {
        "train.rows_per_step": case.data * rows,
        "data.max_length": length,
        "train.seed": seed,
        "train.max_steps": 2,
    }
    for one in (case.baseline, case):
        chosen = settings_of(one, setting, directory) | drawn
        run(one.world, trainings, one.world, [chosen | {"loss.normalization": normalization}])
    assert_same(directory / case.baseline.name, directory / case.name, steps=2)
