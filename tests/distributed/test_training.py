"""Training on several processes through the command: its checkpoints, its errors and its signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from erniekit.checkpoint.state import newest_checkpoint, read_state
from erniekit.data.encode.tokenizer import load_tokenizer
from tests.distributed.layouts import overrides, train_command, trainings
from tests.distributed.processes import ROOT, run, run_to_end
from tests.distributed.settings import STEPS, assert_same, vl_setting
from tests.integration.training_setup import chats, write_chats

LONG = {"train.max_steps": 2000, "checkpoint.save_every": None}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return vl_setting(tmp_path_factory.mktemp("setting"))


def start(directory: Path, setting: Mapping[str, Any], world: int, *options: str) -> subprocess.Popen[str]:
    """`erniekit train` on so many processes; its output and its errors are one."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.yaml").write_text("{}\n")
    command = [
        sys.executable,
        "-m",
        "erniekit",
        "train",
        str(directory / "run.yaml"),
        *overrides(dict(setting)),
    ]
    command += ["--devices", f"cpu:{world}", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def alone(directory: Path, setting: Mapping[str, Any]) -> Path:
    """The same run in one process."""
    output = directory / "alone"
    run(1, trainings, 1, [{**setting, "train.output_dir": str(output)}])
    return output


def test_the_command_trains_on_several_processes(setting: dict[str, Any], tmp_path: Path) -> None:
    """All that `test_layouts` tries on two processes, in one."""
    run = tmp_path / "run"
    chosen = {"parallel.expert": 2, "parallel.context": 2, "parallel.shard": "parameters"}
    chosen |= {"train.recompute": True, "train.output_dir": str(run)}
    process = start(tmp_path, setting | chosen, 2)
    output, _ = process.communicate()
    assert process.returncode == 0, output[-6000:]
    assert_same(alone(tmp_path, setting), run)


@pytest.mark.parametrize(
    ("world", "degrees", "message"),
    [
        (
            2,
            {"train.rows_per_step": 3},
            "train.rows_per_step is 3, which is not a multiple of 2, the number of processes",
        ),
        (2, {"parallel.expert": 3}, "parallel.expert is 3, which does not divide the 2 processes"),
        (4, {"parallel.context": 4}, "2 attention heads and 1 key/value head; use"),
    ],
)
def test_degrees_that_do_not_fit_are_refused(
    setting: dict[str, Any], tmp_path: Path, world: int, degrees: dict[str, Any], message: str
) -> None:
    (tmp_path / "run.yaml").write_text("{}\n")
    chosen = setting | {"train.output_dir": str(tmp_path / "run")} | degrees
    for rank in run_to_end(world, train_command, str(tmp_path / "run.yaml"), chosen):
        assert rank.status == 1
        assert message in rank.output


def signalled(
    directory: Path, setting: Mapping[str, Any], send: Callable[[subprocess.Popen[str]], None]
) -> tuple[int, str]:
    """The end of a run on two processes to which signals are sent after its first step."""
    chosen = {**setting, "train.output_dir": str(directory / "run"), "parallel.expert": 2}
    process = start(directory, chosen, 2)
    assert process.stdout is not None
    written = ""
    for line in process.stdout:
        written += line
        if line.startswith("step "):
            send(process)
            break
    rest, _ = process.communicate()
    return process.returncode, written + rest


def test_an_interrupt_stops_all_processes_after_the_same_step(
    setting: dict[str, Any], tmp_path: Path
) -> None:
    # It is not over when the interrupt comes, whenever that is; then it goes on for two steps.
    setting = setting | {"schedule.type": "constant"}
    status, output = signalled(tmp_path, setting | LONG, lambda process: process.send_signal(signal.SIGINT))
    assert status == 130, output
    assert "Stopped after step" in output
    assert "--resume --devices cpu:2" in output
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    setting["train.max_steps"] = steps = read_state(checkpoint).step + 2
    run = tmp_path / "run"
    chosen = setting | {"parallel.expert": 2, "train.output_dir": str(run)}
    for rank in run_to_end(2, train_command, str(tmp_path / "run.yaml"), chosen, "--resume"):
        assert rank.status == 0, rank.output[-6000:]
    assert_same(alone(tmp_path, setting), run, steps)


def test_a_scheduler_may_signal_every_process(setting: dict[str, Any], tmp_path: Path) -> None:
    """As SLURM and systemd do; the launcher passes its own signal on as well."""

    def send(process: subprocess.Popen[str]) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *map(int, children)):
            os.kill(pid, signal.SIGTERM)

    status, output = signalled(tmp_path, setting | LONG, send)
    assert status == 143, output
    assert "Stopped after step" in output
    assert newest_checkpoint(tmp_path / "run") is not None


def test_a_second_interrupt_stops_all_processes_at_once(setting: dict[str, Any], tmp_path: Path) -> None:
    """Each somewhere else, and none waits for the others."""

    def send(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)  # another signal is another request, however soon it comes

    status, output = signalled(tmp_path, setting | LONG | {"train.rows_per_step": 32}, send)
    # Two signals at once come in any order: each may reach another thread.
    assert status in (130, 143), output
    assert output.rstrip().endswith("Stopped at once. There is no complete checkpoint."), output


def test_rows_added_to_the_vocabulary_are_the_same_in_any_layout(
    setting: dict[str, Any], tmp_path: Path
) -> None:
    model = shutil.copytree(setting["model.path"], tmp_path / "model")
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens([f"<added_{number}>" for number in range(513 - len(tokenizer))])
    tokenizer.save_pretrained(model)
    samples = chats(12)
    samples[0]["messages"][1]["content"] += f" {tokenizer.convert_ids_to_tokens(512)}"
    data = write_chats(tmp_path / "chats.jsonl", samples)
    resized = setting | {"model.path": str(model), "data.train": str(data), "model.resize_vocab": True}
    resized |= {"data.cache_dir": str(tmp_path / "cache")}
    no_router_losses = {f"loss.{name}": 0 for name in ("balance_weight", "z_weight", "orthogonal_weight")}
    methods = {"full": resized, "lora": resized | {"lora.enabled": True} | no_router_losses}
    sharded = {"parallel.shard": "parameters", "train.recompute": True, "parallel.expert": 2}
    for world, layout in ((1, {}), (2, sharded)):
        runs = [
            chosen | layout | {"train.output_dir": str(tmp_path / f"{method}-{world}")}
            for method, chosen in methods.items()
        ]
        run(world, trainings, world, runs)
    for method in methods:
        assert_same(tmp_path / f"{method}-1", tmp_path / f"{method}-2", STEPS)
