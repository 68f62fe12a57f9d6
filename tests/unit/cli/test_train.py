"""`erniekit train` passes the validated configuration and its options to the training job."""

from pathlib import Path
from typing import Any

import pytest
import typer

from erniekit.cli.train import train
from erniekit.config import Config
from erniekit.errors import ConfigError
from tests.command import erniekit


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of the training job, which returns the status of an interrupted run."""
    from erniekit.train import dry_run
    from erniekit.train import run as run_module

    received: list[dict[str, Any]] = []

    def run_training(config: Config, **switches: bool) -> int:
        received.append({"config": config} | switches)
        return 130

    monkeypatch.setattr(run_module, "run_training", run_training)
    monkeypatch.setattr(dry_run, "dry_run_training", run_training)
    return received


def test_configuration_and_switches_arrive(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {path: m}\ndata: {train: a.jsonl}\ntrain: {output_dir: out}\n")
    with pytest.raises(typer.Exit) as ended:
        train(path, ["optimizer.learning_rate=1e-4"], resume=True, force=True)
    assert ended.value.exit_code == 130
    train(path, dry_run=True, no_weights=True, show_all=True, devices="cpu:4")
    assert calls[0]["config"].optimizer.learning_rate == 1e-4
    assert [call.keys() - {"config"} for call in calls] == [
        {"resume", "force"},
        {"processes", "no_weights", "show_all", "target"},
    ]
    assert calls[0]["resume"] and calls[0]["force"] and calls[1]["target"] is None
    assert (calls[1]["processes"], calls[1]["no_weights"], calls[1]["show_all"]) == (4, True, True)


@pytest.mark.parametrize("option", ["no_weights", "show_all", "gpus"])
def test_options_of_the_dry_run_need_it(option: str, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="only be used with --dry-run"):
        train(tmp_path / "run.yaml", **{option: True})


def test_nothing_starts_with_a_wrong_configuration(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        train(tmp_path / "no.yaml")
    assert not calls


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--learning_rate",
            "no option --learning_rate, and settings are KEY=VALUE: did you mean `optimizer.learn",
        ),
        ("--epochs=3", "did you mean `train.epochs`?"),
        ("--train.epochs=3", "settings are KEY=VALUE, here train.epochs=3"),
        ("--max-steps", "did you mean `train.max_steps`?"),
        ("--per_device_train_batch_size", "did you mean `train.rows_per_step`?"),
        ("--do_train", "it is not needed here"),
        ("--nproc_per_node=8", "--devices 0,1,2,3 names the GPUs"),
        ("--gpus", "--devices 0,1,2,3 names the GPUs"),
        ("--dryrun", "\nerror: no such option: --dryrun (Possible options: --dry-run)"),
        ("--frobnicate", "settings are KEY=VALUE: allowed here: task, model"),
    ],
)
def test_options_of_other_trainers_are_explained(option: str, message: str) -> None:
    result = erniekit("train", "run.yaml", option, "8")
    assert result.returncode == 2
    assert message in result.stderr


def test_a_moved_run_is_not_resumed_in_its_old_place(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    run = tmp_path / "moved"
    (run / "checkpoint-000001").mkdir(parents=True)
    old = tmp_path / "old"
    (run / "config.yaml").write_text(
        f"model: {{path: m}}\ndata: {{train: a}}\ntrain: {{output_dir: {old}}}\n"
    )
    with pytest.raises(
        ConfigError, match=rf"moved or copied.*{old}.* Add train\.output_dir={run} to continue"
    ):
        train(run / "config.yaml", resume=True)
    assert not calls
    # As advised, by another name of the directory, and for a new run.
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(typer.Exit):
        train(run / "config.yaml", [f"train.output_dir={run}"], resume=True)
    old.symlink_to(run)
    with pytest.raises(typer.Exit):
        train(tmp_path / "link" / "config.yaml", resume=True)
    old.unlink()
    with pytest.raises(typer.Exit):
        train(run / "config.yaml")
    assert [call["resume"] for call in calls] == [True, True, False]
