import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.doctor import processes, step
from erniekit.doctor.check import run_check
from erniekit.doctor.processes import LAYOUTS, process_checks, run_name
from erniekit.doctor.step import SmallModel, check_adamw, check_repeat, check_step, step_checks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return SmallModel(tmp_path_factory.mktemp("doctor"))


def test_a_step_of_the_model(model: SmallModel) -> None:
    found = check_step(model, "float32")
    assert found.status == "ok", found
    repeated = check_repeat(model, "float32")
    assert repeated.status == "ok", repeated


def test_names_of_the_checks(model: SmallModel) -> None:
    names = [check.name for check in step_checks("gpu", model)]
    assert "AdamW, triton, bfloat16 with float32 masters" in names
    assert "tiny-vl, bfloat16, loss and gradients against plain kernels in float32" in names
    assert not any("bfloat16" in check.name or "triton" in check.name for check in step_checks("cpu", model))


def with_results(monkeypatch: pytest.MonkeyPatch, *results: tuple[float, dict[str, Any]]) -> None:
    """What the model gives, one after the other."""
    left = list(results)
    monkeypatch.setattr(SmallModel, "loss_and_gradients", lambda self, dtype: left.pop(0))


ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ((2.5, {"a": ONES}), "loss 2.00000, 2.0e-01 from 2.50000"),
        ((2.0, {"a": 2 * ONES}), "gradients differ by 5.0e-01; allowed 1e-04 and 1e-04"),
        ((2.0, {"b": ONES}), "gradients of a, b are missing"),
        ((float("nan"), {"a": ONES}), "loss 2.00000, nan"),
    ],
    ids=["loss", "gradients", "names", "NaN"],
)
def test_another_step_is_a_failure(
    model: SmallModel, monkeypatch: pytest.MonkeyPatch, other: Any, words: str
) -> None:
    with_results(monkeypatch, (2.0, {"a": ONES}), other)
    found = check_step(model, "float32")
    assert found.status == "failed"
    assert words in found.detail


def test_bits_that_differ_are_reported(model: SmallModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with_results(monkeypatch, (2.0, {"a": ONES, "b": ONES}), (2.0, {"a": ONES, "b": 2 * ONES}))
    found = check_repeat(model, "bfloat16")
    assert found.status == "warning"
    assert "1 of 2 gradients differ, by up to 5.0e-01: set train.deterministic" in found.detail


def test_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_adamw("plain", "float32").status == "ok"
    real = step.adamw
    monkeypatch.setattr(
        step, "adamw", lambda *arguments, **options: real(*arguments, **options | {"epsilon": 1e-2})
    )
    found = check_adamw("plain", "float32")
    assert found.status == "failed"
    assert "the change of the values is wrong by" in found.detail


RIGHT = {"right": ["all_reduce"], "wrong": [], "speed": "fast"}


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[SmallModel, list[Any]]:
    """A model with the logs of runs, and what the processes return."""
    model, results = SmallModel(tmp_path), [RIGHT, RIGHT]
    for name in ("one", *LAYOUTS):
        (tmp_path / run_name(name)).mkdir()
        lines = [{"step": number, "train/loss": 6.0, "train/gradient_norm": 2.0} for number in (1, 2)]
        lines.append({"step": 2})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / run_name(name) / "log.jsonl").write_text(text)
    monkeypatch.setattr(processes, "run_pair", lambda device, model: results)
    return model, results


def test_processes_that_agree(pair: tuple[SmallModel, list[Any]]) -> None:
    found = [run_check(check) for check in process_checks("cpu", pair[0])]
    assert [result.status for result in found] == ["ok"] * 5
    assert found[0].detail == "all_reduce; fast"


def test_processes_that_disagree(pair: tuple[SmallModel, list[Any]]) -> None:
    model, results = pair
    results[1] = {"right": [], "wrong": ["all_reduce"], "speed": ""}
    log = model.directory / run_name("expert") / "log.jsonl"
    log.write_text(log.read_text().replace("2.0", "2.1"))
    found = {check.name: run_check(check) for check in process_checks("cpu", model)}
    assert found["collectives over gloo"].detail == "wrong results of all_reduce"
    assert found["training, expert"].status == "failed"
    assert "by 5.0e-02, allowed 1e-04" in found["training, expert"].detail
    assert found["training, data"].status == "ok"


def test_processes_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They start once; the later checks refer to the first."""
    starts = []

    def run(device: str, model: SmallModel) -> Any:
        starts.append(device)
        raise RuntimeError("no NCCL")

    monkeypatch.setattr(processes, "run_pair", run)
    found = [run_check(check) for check in process_checks("gpu", SmallModel(tmp_path))]
    assert found[0].detail == "RuntimeError: no NCCL"
    assert {result.detail for result in found[1:]} == {"the processes did not finish, see above"}
    assert starts == ["gpu"]
