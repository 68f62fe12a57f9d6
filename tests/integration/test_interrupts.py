"""A run that a signal or weights that are not finite end."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.hub import read_index
from erniekit.checkpoint.state import newest_checkpoint, read_state
from erniekit.config import dump_config, load_config
from erniekit.distributed.context import DistributedContext
from erniekit.train.run import run_training
from erniekit.train.trainer import Trainer
from tests.command import erniekit
from tests.integration.runs import final
from tests.integration.training_setup import losses, make_config


def test_ctrl_c_saves_and_says_how_to_go_on(
    tmp_path: Path,
    model: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_training(make_config(tmp_path / "whole", model, data, train__max_steps=4))
    step = Trainer.train_step

    def interrupted(trainer: Trainer) -> Any:
        if trainer.progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer)

    run = tmp_path / "run"
    config = make_config(run, model, data, train__max_steps=4)
    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert run_training(config) == 130
    printed = capsys.readouterr().out
    assert "SIGINT: finishing this step" in printed
    assert (
        f"Stopped after step 2 of 4. The report is {run}/report.html\nThe checkpoint is {run}/checkpoint-000002. "
        f"Continue with:\n  erniekit train {run}/config.yaml --resume\n" in printed
    )
    assert final(run).name == "checkpoint-000002"
    assert "interrupted after step 2 of 4" in (run / "report.html").read_text(encoding="utf-8")

    monkeypatch.setattr(Trainer, "train_step", step)
    assert run_training(load_config(run / "config.yaml"), resume=True) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<dd>finished</dd>" in page and "<dd>4 of 4</dd>" in page
    assert page.count("<circle") % 4 == 0  # every chart has the steps before the interrupt, too
    assert losses(run) == losses(tmp_path / "whole")


def test_sigterm_to_the_command(tmp_path: Path, model: Path, data: Path) -> None:
    run = tmp_path / "run"
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(make_config(run, model, data, train__max_steps=2000)))
    command = [sys.executable, "-m", "erniekit", "train"]
    process = subprocess.Popen([*command, str(file)], stdout=subprocess.PIPE, text=True)
    log = run / "log.jsonl"
    try:
        while not (log.exists() and log.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 143
    done = read_state(final(run)).step
    assert f"Stopped after step {done} of 2000." in printed
    hint = printed.splitlines()[-1].split()
    assert hint[:2] == ["erniekit", "train"]
    assert hint[-1] == "--resume"
    again = erniekit(*hint[1:], f"train.max_steps={done + 1}")
    assert again.returncode == 0, again.stderr
    assert [step for step, *_ in losses(run)] == list(range(1, done + 2))


def test_a_second_ctrl_c_stops_at_once(
    tmp_path: Path,
    model: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = Trainer.train_step

    def interrupted(trainer: Trainer) -> Any:
        if trainer.progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(
                os.getpid(), signal.SIGTERM
            )  # the same signal would be taken for the same request for a while
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    # Other processes stand elsewhere, and would be waited for.
    monkeypatch.setattr(DistributedContext, "close", lambda dist: pytest.fail("the team was closed"))
    run = tmp_path / "run"
    # A checkpoint that is still written in the background would be lost.
    saved: dict[str, Any] = {"checkpoint__save_every": 1, "checkpoint__background": False}
    assert run_training(make_config(run, model, data, train__max_steps=4, **saved)) == 130
    assert final(run).name == "checkpoint-000001"
    assert (
        "The newest complete checkpoint is checkpoint-000001; steps after it are lost"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"safetensors: model\.norm\.weight holds NaN or infinity"),
        (3e38, r"step 1: the (loss|gradient norm) is .*train\.jsonl:\d+"),
    ],
    ids=["in the model", "computed"],
)
def test_weights_that_are_not_finite_stop_the_run(
    tmp_path: Path, model: Path, data: Path, value: float, message: str
) -> None:
    broken = shutil.copytree(model, tmp_path / "base")
    info = read_index(broken)["model.norm.weight"]
    with info.file.open("r+b") as file:
        file.seek(info.offset)
        file.write(np.full(info.nbytes // 4, value, np.float32).tobytes())
    run = tmp_path / "run"
    config = make_config(run, broken, data, train__max_steps=2)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    ended = erniekit("train", tmp_path / "run.yaml")
    assert ended.returncode == 1
    assert re.search(message, ended.stderr)
    assert newest_checkpoint(run) is None
    if run.exists():
        assert ended.stderr.endswith("Nothing was saved yet.\n")
