"""The same training on any layout: losses, weights and checkpoints, through the command."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.hub import read_array, read_header
from erniekit.checkpoint.state import newest_checkpoint
from tests.integration.training_setup import chats, losses, make_model, write_chats

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "data" / "samples"
STEPS = 20
# Processes, and how many of them share the experts, and each row. A step has 4 rows: 4, 2 or 1 a process.
LAYOUTS = {
    "EP2": (2, 2, 1),
    "DP2": (2, 1, 1),
    "EP4": (4, 4, 1),
    "EP2xDP2": (4, 2, 1),
    "CP2": (2, 1, 2),
    "CP2xEP2": (2, 2, 2),
    "CP2xEP2xDP2": (4, 2, 2),
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small VL model; text, pictures and videos."""
    directory = tmp_path_factory.mktemp("setting")
    return {
        "model.path": str(make_model(directory / "model")),
        "data.train": [str(write_chats(directory / "chats.jsonl", chats(40))), str(SAMPLES / "video.jsonl")],
        "data.max_length": 400,
        "data.max_pixels": 3136,
        "data.video_max_frames": 4,
        "data.video_min_frames": 2,
        "data.video_max_pixels": 3136,
        "data.video_min_pixels": 784,
        "data.workers": 0,
        "data.cache_dir": str(directory / "cache"),
        "optimizer.learning_rate": 1e-3,
        # Where a gradient is nothing but rounding, Adam would still take a whole step in its direction.
        "optimizer.epsilon": 1e-3,
        "loss.balance_weight": 0.01,
        "loss.z_weight": 0.001,
        "loss.orthogonal_weight": 0.01,
        "train.rows_per_step": 4,
        "train.max_steps": STEPS,
        "checkpoint.save_every": STEPS // 2,
        "log.every": 1,
    }


def train(
    run: Path, setting: dict[str, Any], world: int, expert: int, context: int = 1, *, resume: bool = False
) -> subprocess.CompletedProcess[str]:
    """A run of the command. The tests' other processes leave it one thread each."""
    run.parent.mkdir(parents=True, exist_ok=True)
    (run.parent / "run.yaml").write_text("{}\n")
    chosen = {**setting, "train.output_dir": str(run), "parallel.threads": 1}
    chosen |= {"parallel.expert": expert, "parallel.context": context}
    command = [sys.executable, "-m", "erniekit", "train", str(run.parent / "run.yaml")]
    command += [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
    command += ["--devices", f"cpu:{world}", *(["--resume"] if resume else [])]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def trained(
    run: Path, setting: dict[str, Any], world: int, expert: int, context: int = 1, *, resume: bool = False
) -> Path:
    finished = train(run, setting, world, expert, context, resume=resume)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return run


def tensors(run: Path) -> dict[str, np.ndarray]:
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    return {
        f"{file.name.split('.')[0].split('-')[0]} {name}": read_array(info)
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name, info in read_header(file).items()
    }


def assert_same(one: Path, other: Path) -> None:
    """Losses within 1e-5 relative, weights within 1e-5."""
    expected, found = (np.asarray(losses(run))[:, 1] for run in (one, other))
    assert len(expected) == STEPS
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    weights, others = tensors(one), tensors(other)
    assert sorted(weights) == sorted(others)
    for name, weight in weights.items():
        if name.startswith(("model ", "adapter_model ")):
            np.testing.assert_allclose(others[name], weight, rtol=0, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def alone(setting: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("alone") / "run", setting, 1, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_training_is_the_same(setting: dict[str, Any], alone: Path, tmp_path: Path, layout: str) -> None:
    assert_same(alone, trained(tmp_path / "run", setting, *LAYOUTS[layout]))


def test_adapters_are_the_same(setting: dict[str, Any], tmp_path: Path) -> None:
    lora = {key: value for key, value in setting.items() if not key.startswith("loss.")}
    lora |= {"lora.enabled": True, "lora.rank": 4, "train.recompute": True}
    one = trained(tmp_path / "one" / "run", lora, 1, 1)
    assert_same(one, trained(tmp_path / "four" / "run", lora, 4, 2))


def test_a_checkpoint_goes_on_in_any_layout(setting: dict[str, Any], alone: Path, tmp_path: Path) -> None:
    """Half way in one layout, the rest in another: as if it had never changed."""
    half = {**setting, "checkpoint.keep": 9}
    first = trained(tmp_path / "first" / "run", half, 2, 2)
    for number, layout in enumerate([(1, 1), (4, 2, 2)]):
        run = tmp_path / f"again{number}" / "run"
        run.parent.mkdir()
        shutil.copytree(first, run)
        shutil.rmtree(run / f"checkpoint-{STEPS:06d}")
        assert_same(alone, trained(run, half, *layout, resume=True))


def test_epochs_end_with_a_shorter_step_on_every_layout(setting: dict[str, Any], tmp_path: Path) -> None:
    """The last step has rows for some processes only; the others keep step with rows without a sample."""
    short = {key: value for key, value in setting.items() if key != "train.max_steps"} | {"train.epochs": 2}
    one = trained(tmp_path / "one" / "run", short, 1, 1)
    expected = np.asarray(losses(one))[:, 1]
    for context in (1, 2):
        four = trained(tmp_path / f"context{context}" / "run", short, 4, 2, context)
        np.testing.assert_allclose(np.asarray(losses(four))[:, 1], expected, rtol=1e-5)


def test_degrees_that_do_not_fit_are_told(setting: dict[str, Any], tmp_path: Path) -> None:
    finished = train(tmp_path / "run", {**setting, "train.rows_per_step": 3}, 2, 1)
    assert finished.returncode == 1
    assert (
        "train.rows_per_step is 3, which does not divide among the 2 processes"
        in finished.stdout + finished.stderr
    )
    finished = train(tmp_path / "other", setting, 2, 3)
    assert finished.returncode == 1
    assert "parallel.expert is 3, which does not divide the 2 processes" in finished.stdout + finished.stderr
    finished = train(tmp_path / "third", setting, 4, 1, 4)
    assert finished.returncode == 1
    assert "2 attention heads and 1 heads of keys and values cannot be" in finished.stdout + finished.stderr


def test_an_interrupt_stops_all_processes_after_the_same_step(
    setting: dict[str, Any], alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (tmp_path / "run.yaml").write_text("{}\n")
    chosen = {**setting, "train.output_dir": str(run), "parallel.expert": 2, "parallel.threads": 1}
    command = [sys.executable, "-m", "erniekit", "train", str(tmp_path / "run.yaml"), "--devices", "cpu:2"]
    command += [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    told = ""
    for line in process.stdout:
        told += line
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=120)
    told += rest
    assert process.returncode == 130, told
    assert "Stopped after step" in told
    assert "--resume --devices cpu:2" in told
    assert newest_checkpoint(run) is not None
    trained(run, setting, 2, 2, resume=True)
    assert_same(alone, run)
