"""Public demo data as it is: preferences and function calls train, and no sample is left out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from erniekit.create.create import create_model
from erniekit.train.run import run_training
from tests.integration.training_setup import make_config, read_log
from tests.unit.data.helpers import SHARED

TESTDATA = SHARED / "testdata"


@pytest.mark.skipif(not TESTDATA.is_dir(), reason="no ../shared/testdata beside this clone")
@pytest.mark.parametrize(
    ("name", "task", "longest", "expected"),
    [
        ("dpo_en_demo.json", "dpo", 9000, "300 preference pairs"),
        ("glaive_toolcall_en_demo.json", "sft", 12000, "211 tool calls"),
    ],
)
def test_every_sample_is_used(
    name: str, task: str, longest: int, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = TESTDATA / name, tmp_path / "model"
    create_model(
        "tiny-dense",
        model,
        [data],
        vocab_size=2048,
        overrides=["num_hidden_layers=1", "max_position_embeddings=16384"],
    )
    # Whatever cannot be used, or is too long, would be an error. All samples are read before the first step.
    config = make_config(
        tmp_path / "run",
        model,
        data,
        task=task,
        data__max_length=longest,
        train__rows_per_step=1,
        train__max_steps=1,
    )
    assert run_training(config) == 0
    said = capsys.readouterr().out
    assert "training data: 300 samples" in said and expected in said
    assert "skipped" not in said
    (loss,) = [line["train/loss"] for line in read_log(tmp_path / "run") if "train/loss" in line]
    assert math.isfinite(loss)
