"""Chats about photographs, from the public demo data beside this clone where it is there."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from erniekit.config import load_config
from erniekit.create.create import create_model
from erniekit.train.run import run_training
from tests.closeness import assert_close

DEMO = Path(__file__).resolve().parents[3] / "shared" / "testdata" / "mllm_demo.json"


@pytest.mark.skipif(not DEMO.is_file(), reason="no ../shared/testdata beside this clone")
def test_a_small_model_learns_the_demo(tmp_path: Path) -> None:
    create_model("tiny-vl", tmp_path / "model", [DEMO], seed=1)
    settings = [
        f"model.path={tmp_path / 'model'}",
        f"data.train={DEMO}",
        f"train.output_dir={tmp_path / 'run'}",
    ]
    settings += ["data.max_length=1024", "data.max_pixels=50176", "data.workers=0"]
    settings += ["train.max_steps=30", "optimizer.learning_rate=2e-3"]
    (tmp_path / "run.yaml").write_text("model: {}\n")
    run_training(load_config(tmp_path / "run.yaml", settings))

    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in log]
    assert len(losses) == 30
    assert losses[-1] < 0.25 * losses[0]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    assert_close(logged, losses)
    tags = events.Tags()
    expected = ["learning_rate", "gradient_norm", "loss_tokens", "tokens_per_second", "step_seconds"]
    assert {f"train/{name}" for name in expected} <= set(tags["scalars"])
    assert any(tag == "expert_load/vision/max" for tag in tags["scalars"])
