"""A loss or gradient that is not finite: the run stops or skips the step, and `erniekit replay` finds the place."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from erniekit.cli.main import build_app
from erniekit.errors import DataError, ErnieKitError
from erniekit.objectives.sft import SftObjective
from erniekit.train.replay import replay_rows
from erniekit.train.run import run_training
from erniekit.train.saved_rows import load_rows
from tests.integration.runs import assert_same_run, copy_at
from tests.integration.training_setup import losses, make_config, read_log

BAD = "train.jsonl:3"


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With the sample BAD, the input of decoder layer 1 is NaN."""
    original = SftObjective.__call__

    def call(objective: SftObjective, batch: Any, *arguments: Any) -> Any:
        names = getattr(batch, "batch", batch).sample_ids
        if not any(name.endswith(BAD) for name in names):
            return original(objective, batch, *arguments)
        layer = objective.model.model.layers[1]
        handle = layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * math.nan, *inputs[1:]))
        try:
            return original(objective, batch, *arguments)
        finally:
            handle.remove()

    monkeypatch.setattr(SftObjective, "__call__", call)
    yield


def replay(*arguments: str) -> str:
    result = CliRunner().invoke(build_app(["replay"]), ["replay", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("method", [{}, {"lora__enabled": True, "lora__dropout": 0.1}], ids=["full", "lora"])
def test_a_run_stops_and_its_rows_are_computed_again(
    tmp_path: Path, model: Path, data: Path, method: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    config = make_config(
        run, model, data, **method, train__max_steps=9, checkpoint__save_every=1, data__shuffle=False
    )
    with pytest.raises(
        ErnieKitError, match=r"step 1: the loss is not a finite number .*train\.jsonl:3"
    ) as error:
        run_training(config)
    saved = run / "nonfinite" / "step-000001"
    assert f"erniekit replay {saved}" in str(error.value)
    assert not list(run.glob("checkpoint-*"))
    # The row with the sample, whole.
    (row,) = json.loads((saved / "rows-0.json").read_text())["rows"]
    assert row["loss_sum"] == "nan"
    sample = next(sample for sample in row["samples"] if sample["id"].endswith(BAD))
    assert sample["tokens"] > sample["trained_tokens"] > 0
    assert [len(media) for media in load_rows(saved).rows[0].media_names] == [
        len(sample["media"]) for sample in row["samples"]
    ]

    lines = replay(str(saved), "--device", "cpu", "--threads", "1").splitlines()
    assert lines[0].startswith("step 1: the loss is not a finite number")
    assert lines[1].endswith("the base model: the run has no checkpoint before the step")
    assert "loss nan, gradient norm nan; not finite from decoder layer 1 on" in lines[2]
    by_sample = dict(line.strip().split(" ", 1) for line in lines[3:])
    assert len(by_sample) == len(row["samples"])
    for name, text in by_sample.items():
        assert ("not finite from decoder layer 1 on" in text) == name.endswith(BAD)


@pytest.mark.usefixtures("poisoned")
def test_a_skipped_step_and_a_resumed_run(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is resumed after a skipped step is the run that never stopped."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    settings = {
        "train__max_steps": 4,
        "train__on_nonfinite": "skip",
        "checkpoint__save_every": 1,
        "checkpoint__keep": 9,
    }
    run_training(make_config(whole, model, data, **settings))
    # The sample is in step 2, and again in the next epoch.
    assert [step for step, *_ in losses(whole)] == [1, 4]
    assert (
        f"step 2 is skipped: the loss is not a finite number in the samples {data}" in capsys.readouterr().out
    )
    assert [line.get("train/skipped_steps") for line in read_log(whole)] == [None, 1, 2, 2]
    copy_at(whole, part, 2)
    run_training(make_config(part, model, data, **settings), resume=True)
    assert_same_run(whole, part)
    assert json.loads((part / "checkpoint-000004" / "trainer_state.json").read_text())["skipped_steps"] == 2
    saved = part / "nonfinite" / "step-000003"
    assert f"{part}/checkpoint-000002, after step 2" in replay(
        str(saved), "--device", "cpu", "--threads", "1"
    )


def test_rows_that_cannot_be_replayed(tmp_path: Path) -> None:
    saved = tmp_path / "run" / "nonfinite" / "step-000001"
    saved.mkdir(parents=True)
    with pytest.raises(DataError, match="no saved rows; give a directory such as"):
        replay_rows(saved, None, device="cpu", threads=1, log=print)
    for text in ("{", '{"step": 1}', '{"step": "x", "reason": 1, "rows": 3}'):
        (saved / "rows-0.json").write_text(text)
        (saved / "rows-0.safetensors").write_bytes(b"\0" * 20)
        with pytest.raises(DataError, match="the saved rows cannot be read"):
            replay_rows(saved, None, device="cpu", threads=1, log=print)
