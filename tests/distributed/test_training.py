"""The same training on any layout: losses, weights and checkpoints, through the command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.state import newest_checkpoint, read_state
from erniekit.data.encode.tokenizer import load_tokenizer
from tests.closeness import MODEL, assert_close
from tests.distributed.settings import ROOT, STEPS, assert_same, vl_setting
from tests.integration.training_setup import chats, losses, write_chats


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return vl_setting(tmp_path_factory.mktemp("setting")) | {"checkpoint.save_every": STEPS // 2}


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
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def trained(
    run: Path, setting: dict[str, Any], world: int, expert: int, context: int = 1, *, resume: bool = False
) -> Path:
    finished = train(run, setting, world, expert, context, resume=resume)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return run


@pytest.fixture(scope="module")
def alone(setting: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("alone") / "run", setting, 1, 1)


def test_the_command_trains_on_several_processes(
    setting: dict[str, Any], alone: Path, tmp_path: Path
) -> None:
    """All that `test_layouts` tries, in one."""
    spread = {**setting, "parallel.shard": "parameters", "train.recompute": True}
    assert_same(alone, trained(tmp_path / "run", spread, 4, 2, 2))


def test_a_checkpoint_goes_on_in_any_layout(setting: dict[str, Any], alone: Path, tmp_path: Path) -> None:
    """Half way in one layout, the rest in another: as if it had never changed."""
    half = {**setting, "checkpoint.keep": 9, "parallel.shard": "parameters", "train.recompute": True}
    first = trained(tmp_path / "first" / "run", half, 2, 2)
    then = [((1, 1), "none"), ((4, 2, 2), "optimizer"), ((2, 1), "parameters")]
    for number, (dims, shard) in enumerate(then):
        half["parallel.shard"] = shard
        run = tmp_path / f"again{number}" / "run"
        run.parent.mkdir()
        shutil.copytree(first, run)
        shutil.rmtree(run / f"checkpoint-{STEPS:06d}")
        assert_same(alone, trained(run, half, *dims, resume=True))


def test_epochs_end_with_a_shorter_step_on_every_layout(setting: dict[str, Any], tmp_path: Path) -> None:
    """The last step has rows for some processes only; the others keep step with rows without a sample."""
    short = {key: value for key, value in setting.items() if key != "train.max_steps"} | {"train.epochs": 2}
    one = trained(tmp_path / "one" / "run", short, 1, 1)
    expected = np.asarray(losses(one))[:, 1]
    for context in (1, 2):
        four = trained(tmp_path / f"context{context}" / "run", short, 4, 2, context)
        assert_close(np.asarray(losses(four))[:, 1], expected, MODEL)


def test_degrees_that_do_not_fit_are_told(setting: dict[str, Any], tmp_path: Path) -> None:
    finished = train(tmp_path / "run", {**setting, "train.rows_per_step": 3}, 2, 1)
    assert finished.returncode == 1
    assert (
        "train.rows_per_step is 3, which is not a multiple of 2, the number of processes"
        in finished.stdout + finished.stderr
    )
    finished = train(tmp_path / "other", setting, 2, 3)
    assert finished.returncode == 1
    assert "parallel.expert is 3, which does not divide the 2 processes" in finished.stdout + finished.stderr
    finished = train(tmp_path / "third", setting, 4, 1, 4)
    assert finished.returncode == 1
    assert "2 attention heads and 1 key/value head; use" in finished.stdout + finished.stderr


def signalled(
    run: Path, setting: dict[str, Any], send: Callable[[subprocess.Popen[str]], None]
) -> tuple[int, str]:
    """The end of a run on two processes to which signals are sent after its first step."""
    (run.parent / "run.yaml").write_text("{}\n")
    chosen = {**setting, "train.output_dir": str(run), "parallel.expert": 2, "parallel.threads": 1}
    command = [sys.executable, "-m", "erniekit", "train", str(run.parent / "run.yaml"), "--devices", "cpu:2"]
    command += [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    told = ""
    for line in process.stdout:
        told += line
        if line.startswith("step "):
            send(process)
            break
    rest, _ = process.communicate()
    return process.returncode, told + rest


def test_an_interrupt_stops_all_processes_after_the_same_step(
    setting: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # It is not over when the interrupt comes, whenever that is; then it goes on for two steps.
    setting = {**setting, "schedule.type": "constant", "checkpoint.save_every": None}
    status, told = signalled(
        run, {**setting, "train.max_steps": 2000}, lambda process: process.send_signal(signal.SIGINT)
    )
    assert status == 130, told
    assert "Stopped after step" in told
    assert "--resume --devices cpu:2" in told
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    setting["train.max_steps"] = steps = read_state(checkpoint).step + 2
    trained(run, setting, 2, 2, resume=True)
    assert_same(trained(tmp_path / "alone" / "run", setting, 1, 1), run, steps)


def test_a_scheduler_may_signal_every_process(setting: dict[str, Any], tmp_path: Path) -> None:
    """As SLURM and systemd do; the launcher passes its own signal on as well."""

    def send(process: subprocess.Popen[str]) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *map(int, children)):
            os.kill(pid, signal.SIGTERM)

    long = {**setting, "train.max_steps": 2000, "checkpoint.save_every": None}
    status, told = signalled(tmp_path / "run", long, send)
    assert status == 143, told
    assert "Stopped after step" in told
    assert newest_checkpoint(tmp_path / "run") is not None


def test_a_second_interrupt_stops_all_processes_at_once(setting: dict[str, Any], tmp_path: Path) -> None:
    """Each somewhere else, and none waits for the others."""

    def send(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)  # another signal is another request, however soon it comes

    long = {**setting, "train.max_steps": 2000, "train.rows_per_step": 64, "checkpoint.save_every": None}
    status, told = signalled(tmp_path / "run", long, send)
    assert status == 130, told
    assert told.rstrip().endswith("Stopped at once. Nothing was saved yet."), told


@pytest.mark.parametrize("lora", [False, True])
def test_rows_added_to_the_vocabulary_are_the_same_in_any_layout(
    setting: dict[str, Any], tmp_path: Path, lora: bool
) -> None:
    steps = 4
    model = shutil.copytree(setting["model.path"], tmp_path / "model")
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens([f"<added_{number}>" for number in range(513 - len(tokenizer))])
    tokenizer.save_pretrained(model)
    samples = chats(12)
    samples[0]["messages"][1]["content"] += f" {tokenizer.convert_ids_to_tokens(512)}"
    data = write_chats(tmp_path / "chats.jsonl", samples)
    resized = {**setting, "model.path": str(model), "data.train": str(data), "model.resize_vocab": True}
    resized |= {"train.max_steps": steps, "lora.enabled": lora, "data.cache_dir": str(tmp_path / "cache")}
    resized["checkpoint.save_every"] = None
    if lora:
        resized |= {f"loss.{name}": 0 for name in ("balance_weight", "z_weight", "orthogonal_weight")}
    alone = trained(tmp_path / "alone" / "run", resized, 1, 1)
    spread = {**resized, "parallel.shard": "parameters", "train.recompute": True}
    assert_same(alone, trained(tmp_path / "spread" / "run", spread, 2, 2), steps)
