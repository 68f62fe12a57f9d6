"""When `erniekit train` starts processes, and the commands that it starts."""

import os
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from erniekit.checkpoint import download
from erniekit.checkpoint.download import LocalModel
from erniekit.cli.train import train
from erniekit.cli.train_options import resume_as_flag
from erniekit.distributed.worker import Worker, worker_environment, worker_from
from erniekit.errors import ConfigError
from erniekit.launch import launch

GPU = "FLAGS_selected_gpus"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls that would start processes or train."""
    found: list[dict[str, Any]] = []

    def run_processes(
        plan: launch.LaunchPlan, arguments: list[str], logs: Path, again: Any, is_saving: Any
    ) -> int:
        found.append({"world": plan.world, "arguments": arguments, "logs": logs, "again": again()})
        return 3

    def run_training(config: Any, **flags: bool | int) -> int:
        found.append({"device": config.parallel.device} | flags)
        return 0

    monkeypatch.setattr(launch, "run_processes", run_processes)
    monkeypatch.setattr("erniekit.train.run.run_training", run_training)
    monkeypatch.setattr("erniekit.train.dry_run.dry_run_training", run_training)
    monkeypatch.setattr("erniekit.train.preflight.check_before_launch", lambda *arguments, **options: None)
    monkeypatch.setattr(launch, "visible_gpus", lambda: 0)
    for name in ("PADDLE_TRAINERS_NUM", "SLURM_STEP_ID", GPU):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    run = tmp_path / "run"
    file.write_text(f"model: {{path: m}}\ndata: {{train: d.jsonl}}\ntrain: {{output_dir: {run}}}\n")
    return file


def invoke(*arguments: Any) -> Any:
    app = typer.Typer()
    app.command()(train)
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_processes_are_started(started: list[dict[str, Any]], config: Path) -> None:
    override = "optimizer.learning_rate=1e-4"
    assert invoke(config, override, "--devices", "cpu:4").exit_code == 3
    arguments = ["train", str(config), override, "--devices", "cpu:4"]
    run = config.parent / "run"
    assert started == [{"world": 4, "arguments": arguments, "logs": run / "logs", "again": None}]

    (run / "checkpoint-000001").mkdir(parents=True)
    options = ["--devices", "0", "--nodes", 2, "--node-rank", 1, "--master", "h:5"]
    invoke(config, "--resume", *options)
    assert started[1]["arguments"] == ["train", str(config), "--devices", "0", "--resume"]
    assert started[1]["world"] == 2
    assert started[1]["again"] == (
        f"erniekit train {config} --devices 0 --nodes 2 --node-rank 1 --master h:5 --resume"
    )


def test_processes_use_the_commit_that_was_found(
    started: list[dict[str, Any]], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LocalModel(config.parent, "c0ffee")
    monkeypatch.setattr(download, "local_model", lambda name, revision, weights: model)
    invoke(config, "model.path=baidu/model", "--devices", "cpu:2")
    assert started[0]["arguments"] == [
        *("train", str(config), "model.path=baidu/model", "model.revision=c0ffee"),
        *("--devices", "cpu:2"),
    ]


def test_every_gpu_is_used(
    started: list[dict[str, Any]], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: 8)
    invoke(config)
    assert (started[0]["world"], started[0]["arguments"]) == (8, ["train", str(config)])
    invoke(config, "parallel.device=cpu")
    assert started[1] == {"device": "cpu", "resume": False, "force": False}


def test_one_process_trains_by_itself(
    started: list[dict[str, Any]], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke(config)
    invoke(config, "--devices", "cpu")
    invoke(config, "--devices", "cpu:4", "--dry-run")
    monkeypatch.setenv(GPU, "0")
    invoke(config, "--devices", "5")
    assert [call["device"] for call in started] == ["auto", "cpu", "cpu", "gpu"]
    assert [call.get("processes") for call in started] == [None, None, 4, None]
    assert os.environ.get(GPU) == "5"


def test_a_worker_starts_nothing(
    started: list[dict[str, Any]], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in worker_environment(Worker(1, 4, 1, 4, ("127.0.0.1", 5)), None).items():
        monkeypatch.setenv(name, value)
    invoke(config, "--devices", "cpu:4", "--resume")
    assert started == [{"device": "cpu", "resume": True, "force": False}]


def test_a_slurm_task_starts_nothing(
    started: list[dict[str, Any]], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in worker_environment(Worker(0, 1, 0, 1, ("h", 1)), 0) | {"GLOG_minloglevel": ""}:
        monkeypatch.setenv(name, "")  # restores what the command sets
        monkeypatch.delenv(name)
    task = {"PROCID": "3", "LOCALID": "1", "NODEID": "1", "JOB_ID": "7", "STEP_ID": "0"}
    step = {"STEP_NUM_TASKS": "4", "STEP_TASKS_PER_NODE": "2(x2)", "STEP_NODELIST": "gpu[3-4]"}
    for name, value in (task | step).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    # A task on each node with --nodes is a launcher.
    invoke(config, "--devices", "cpu:2", "--nodes", 2, "--node-rank", 1, "--master", "h:5")
    assert started.pop()["world"] == 4
    with pytest.raises(ConfigError, match="srun has started 4 tasks, so --devices cannot start more"):
        invoke(config, "--devices", "cpu:2")
    assert started == []
    invoke(config, "--resume")
    assert started == [{"device": "auto", "resume": True, "force": False}]
    assert worker_from(os.environ) == Worker(3, 4, 1, 2, ("gpu3", 15007))
    assert os.environ[GPU] == "1"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "x.yaml", "--resume", "auto"], ["train", "x.yaml", "--resume"]),
        (["train", "--resume", "auto", "x.yaml"], ["train", "--resume", "x.yaml"]),
        (["train", "x.yaml", "--resume=auto", "a=1"], ["train", "x.yaml", "--resume", "a=1"]),
        (["train", "--resume", "x.yaml", "auto"], ["train", "--resume", "x.yaml", "auto"]),
    ],
)
def test_resume_auto_is_resume(arguments: list[str], expected: list[str]) -> None:
    assert resume_as_flag(arguments) == expected


def test_what_is_refused(started: list[dict[str, Any]], config: Path) -> None:
    for options in (["--devices", "all"], ["--nodes", "2"], ["--master", "h:1"]):
        with pytest.raises(ConfigError, match="--"):
            invoke(config, *options)
    assert started == []
