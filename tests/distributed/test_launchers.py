"""Runs that other launchers start, and a run on two machines."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from erniekit.checkpoint.state import read_state
from erniekit.distributed.watchdog import PEER_LOST
from tests.distributed.processes import ROOT, free_port
from tests.integration.training_setup import chats, make_model, write_chats

EXAMPLES = ROOT / "examples" / "launch"
# Starts two tasks as Slurm's srun does on one node, leaving out its options.
SRUN = """#!/usr/bin/env bash
echo "srun $*"
while [[ "$1" == -* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 SLURM_STEP_NODELIST=localhost
export SLURM_NODEID=0
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" || exit
wait $!
"""
# Two network namespaces, each with one end of a cable; this one and its child are the machines.
MACHINES = """
set -e
ip link set lo up
unshare --net sleep infinity & other=$!
trap 'kill $other' EXIT
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.02; done
enter="nsenter --net --target $other"
ip link add left type veth peer name right netns $other
ip addr add 10.99.0.1/24 dev left
ip link set left up
$enter ip addr add 10.99.0.2/24 dev right
$enter ip link set right up
$enter ip link set lo up
"""


def environment() -> dict[str, str]:
    """Without the variables of a launcher; with the commands of this installation."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PADDLE_"))}
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if any(name == "lo" for _, name in socket.if_nameindex()) else {}
    return kept | loopback | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def write_run(directory: Path) -> list[str]:
    """The configuration file and overrides of a run of two processes with one step."""
    model = make_model(directory / "model", "tiny-dense")
    settings = {
        "model.path": str(model),
        "data.train": str(write_chats(directory / "chats.jsonl", chats(8, images=False))),
        "data.max_length": 160,
        "data.workers": 0,
        "data.cache_dir": str(directory / "cache"),
        "train.output_dir": str(directory / "run"),
        "train.rows_per_step": 2,
        "train.max_steps": 1,
        "parallel.device": "cpu",
        "parallel.threads": 1,
    }
    (directory / "run.yaml").write_text("{}\n")
    return [str(directory / "run.yaml"), *(f"{key}={json.dumps(value)}" for key, value in settings.items())]


def finish(command: list[str], directory: Path, variables: dict[str, str]) -> str:
    """Run a command to its end; its output."""
    result = subprocess.run(
        command,
        cwd=directory,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def write_command(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def task_variables(rank: int, port: int) -> dict[str, str]:
    """Those of one of two tasks on this machine."""
    step = {"STEP_ID": "0", "STEP_NUM_TASKS": "2", "STEP_TASKS_PER_NODE": "2", "STEP_NODELIST": "localhost"}
    task = {"NODEID": "0", "PROCID": f"{rank}", "LOCALID": f"{rank}", "JOB_ID": "7"}
    return {f"SLURM_{name}": value for name, value in (step | task).items()} | {"MASTER_PORT": f"{port}"}


def slurm_variables(commands: Path) -> dict[str, str]:
    """Those of a job, with stand-ins for Slurm's commands."""
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "MASTER_PORT": str(free_port())}
    return job | {"PATH": f"{commands}{os.pathsep}{environment()['PATH']}"}


def test_a_run_goes_on_with_another_launcher(tmp_path: Path) -> None:
    """Slurm starts it, Paddle's launcher resumes it; --resume auto does both."""
    arguments = write_run(tmp_path)
    write_command(tmp_path / "bin" / "srun", SRUN)
    script = ["bash", str(EXAMPLES / "slurm.sbatch"), *arguments]
    shown = finish(script, tmp_path, slurm_variables(tmp_path / "bin"))
    assert "--kill-on-bad-exit=1" in shown and "--distribution=block" in shown
    # Both tasks share an output, and rank 0 writes the log of the run.
    lines = [line for line in shown.splitlines() if not line.startswith("srun ")]
    assert [line for line in lines if lines.count(line) > 1] == []
    assert "processes: 2" in shown
    assert "there is no checkpoint to resume from yet" in shown
    assert read_state(tmp_path / "run" / "checkpoint-000001").step == 1

    script = [str(EXAMPLES / "paddle_launch.sh"), *arguments, "train.max_steps=2"]
    logs = tmp_path / "launch"
    shown = finish(script, tmp_path, {"PROCESSES": "2", "LOG_DIR": str(logs)})
    assert f"resuming from {tmp_path}/run/checkpoint-000001, after step 1" in shown
    assert "processes: 2" in shown
    assert read_state(tmp_path / "run" / "checkpoint-000002").step == 2
    assert (logs / "workerlog.1").exists()


def test_an_error_of_all_tasks_is_printed_once(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: {path: m}\ndata: {train: a.jsonl}\ntrain: {output_dir: out, epoch: 2}\n"
    )
    write_command(tmp_path / "bin" / "srun", SRUN)
    command = ["srun", "erniekit", "train", "run.yaml"]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment() | slurm_variables(tmp_path / "bin"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("train.epochs") == 1, result.stderr
    assert result.stderr.endswith("error: rank 1: the same error as on rank 0\n")


@pytest.mark.parametrize(("launcher", "failed"), [("tasks", 0), ("tasks", 1), ("machines", 1)])
def test_a_process_that_fails_before_it_connects_ends_the_others(
    tmp_path: Path, launcher: str, failed: int
) -> None:
    """Neither Slurm nor a launcher of the same machine ends the other process here."""
    arguments, port = write_run(tmp_path), free_port()
    started = []
    for rank in range(2):
        options = [*arguments, *(["model.path=/none"] if rank == failed else [])]
        variables = task_variables(rank, port)
        if launcher == "machines":
            variables = {}
            options += ["--devices", "cpu", "--nodes", "2", "--node-rank", f"{rank}"]
            options += ["--master", f"127.0.0.1:{port}"]
        process = subprocess.Popen(
            ["erniekit", "train", *options],
            env=environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
    texts = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [1, 1], texts
    assert "error: " in texts[failed] and "/none" in texts[failed], texts
    assert f"{PEER_LOST}: " in texts[1 - failed] and "/none" in texts[1 - failed], texts


def test_a_job_that_saved_before_its_time_limit_is_queued_again(tmp_path: Path) -> None:
    write_command(tmp_path / "bin" / "srun", "#!/bin/sh\nexit 143\n")
    write_command(tmp_path / "bin" / "scontrol", "#!/bin/sh\necho scontrol $*\n")
    command = ["bash", str(EXAMPLES / "slurm.sbatch"), "run.yaml"]
    variables = environment() | slurm_variables(tmp_path / "bin")
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (143, "scontrol requeue 7\n")


def run_on_machines(commands: str) -> subprocess.CompletedProcess[str]:
    """Run a script in two network namespaces; `$enter` in front of a command runs it in the other one."""
    unshare = [
        "unshare",
        "--user",
        "--map-root-user",
        "--net",
        "--pid",
        "--fork",
        "--mount-proc",
        "bash",
        "-c",
    ]
    return subprocess.run(
        [*unshare, MACHINES + commands],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_two_machines(tmp_path: Path) -> None:
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"two network namespaces need {', '.join(missing)}")
    trial = run_on_machines("true")
    if trial.returncode:
        pytest.skip(f"two network namespaces are not permitted here: {trial.stdout.strip()}")

    arguments = write_run(tmp_path)
    train = ["python", "-m", "erniekit", "train", *arguments, "--devices", "cpu", "--nodes", "2"]
    train += ["--master", "10.99.0.1:6170", "--node-rank"]
    (tmp_path / "train.json").write_text(json.dumps(train))
    # Through Python, since a shell would take the overrides apart.
    start = "python -c 'import json, os, sys; c = json.load(open(sys.argv[1])); os.execvp(c[0], [*c, sys.argv[2]])'"
    start += f" {tmp_path}/train.json"
    result = run_on_machines(
        f"GLOO_SOCKET_IFNAME=right $enter {start} 1 &> {tmp_path}/second.log & second=$!\n"
        f"GLOO_SOCKET_IFNAME=left {start} 0\n"
        "wait $second\n"
    )
    assert result.returncode == 0, result.stdout + (tmp_path / "second.log").read_text()
    assert "processes: 2" in result.stdout
    assert read_state(tmp_path / "run" / "checkpoint-000001").step == 1
    assert {file.name for file in (tmp_path / "run" / "logs").glob("*.log")} == {"rank-0.log", "rank-1.log"}
