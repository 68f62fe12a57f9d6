"""The rehearsal's adapter gives Paddle's numbers for whole models. Both run the cases of rehearsal_cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.closeness import BFLOAT16, FLOAT32, MODEL, assert_all_close
from tests.numerics.rehearsal_cases import results

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
# What a whole process needs, before it imports Paddle.
START = """
import sys
from erniekit.runtime import prepare_environment
prepare_environment()
import torch
torch.set_num_threads(1)
from tools.gpu.rehearsal.adapter import install
install()
"""


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START + code, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def _by_kind(values: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """By case, form and kind: gradients, weights after a step, rewards, and what else there is."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, value in values.items():
        (case, _, name), (_, _, form) = key.partition(" | ")[0].partition(": "), key.partition(" | ")
        other = "rewards" if name.startswith("rewards/") else "values"
        kind = name.partition(" of ")[0] if " of " in name else other
        groups.setdefault(f"{case}, {form or 'cpu'}, {kind}", {})[f"{case}: {name}"] = value
    return groups


@pytest.mark.slow
def test_adapter_gives_the_numbers_of_paddle(tmp_path: Path) -> None:
    file = tmp_path / "adapter.npz"
    run = _run("from tests.numerics.rehearsal_cases import main\nmain(sys.argv[1])", str(file))
    assert run.returncode == 0, run.stderr
    expected = results(adapter=False)
    with np.load(file) as stored:
        found = {name: stored[name] for name in stored.files}
    # Names and order of parameters too.
    assert [name for name in found if " | " not in name] == list(expected)
    for group, values in _by_kind(found).items():
        # Gradients go through all layers; rewards are small differences of log-probabilities.
        close = FLOAT32 if group.endswith(", values") else MODEL
        assert_all_close(values, {name: expected[name] for name in values}, close, what=group)


@pytest.mark.slow
def test_measurements_can_be_tried_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    file = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "tools.gpu.rehearsal.run", "--device", "cpu", "--tiny", "--steps", "1"]
    command += ["--layers", "2", "3", "--cases", "vl/mixed/experts", "--out", str(file)]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    ours, peer = (json.loads(line)["depths"] for line in file.read_text().splitlines())
    assert [depth["layers"] for depth in ours] == [depth["layers"] for depth in peer] == [2, 3]
    for one, other in zip(ours, peer, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=BFLOAT16)


@pytest.mark.slow
def test_two_processes_can_be_tried_on_a_cpu(tmp_path: Path) -> None:
    """Exchanged tokens, sharded gradients and gathered weights give one loss; copies for saves are compared."""
    file = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "tools.gpu.rehearsal.parallel", "--device", "cpu", "--tiny"]
    command += ["--layers", "2", "--steps", "1", "--saves", "--out", str(file)]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["layout"] for record in records] == ["expert", "gradients", "parameters"]
    for record in records:
        assert record["loss"] == pytest.approx(records[1]["loss"], rel=BFLOAT16)
    assert {name: save["passes"] > 0 for name, save in records[2]["saves"].items()} == {
        "gathered first": False,
        "forward": True,
    }


@pytest.mark.slow
def test_copies_can_be_tried_on_a_cpu_without_the_packages_of_other_modules() -> None:
    """erniekit's copy in host memory, with a stand-in for a stream. The other machine lacks these packages."""
    code = """
import runpy, sys
for package in ("pydantic", "PIL", "typer"):
    sys.modules[package] = None
sys.argv = ["saves", "--device", "cpu", "--tiny", "--layers", "2", "--steps", "1"]
runpy.run_module("tools.gpu.rehearsal.saves", run_name="__main__")
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "the values are those before the update" in run.stdout


def test_what_the_adapter_lacks_is_an_error() -> None:
    run = _run(
        """
import paddle, paddle.nn.functional as F
from erniekit.data.media.patches import Patches
x = paddle.zeros([2])
for name, ask in {
    "paddle.erfinv": lambda: paddle.erfinv(x),
    "paddle.nn.functional.mish": lambda: F.mish(x),
    "logit": lambda: x.logit(),
    "erniekit.data.media.patches.Patches": lambda: Patches(),
}.items():
    try:
        ask()
    except AttributeError as error:
        assert name in str(error), error
    else:
        raise AssertionError(name)
"""
    )
    assert run.returncode == 0, run.stderr
