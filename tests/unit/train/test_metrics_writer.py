"""What is written must be readable by TensorBoard, and by a JSON reader line by line."""

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from erniekit.train.metrics_writer import LOG_FILE, MetricsWriter, memory
from erniekit.train.trackers.tensorboard import TENSORBOARD_DIR, TensorBoardTracker


def read_events(directory: Path) -> EventAccumulator:
    accumulator = EventAccumulator(
        str(directory / TENSORBOARD_DIR), size_guidance={"histograms": 0, "scalars": 0}
    )
    accumulator.Reload()
    return accumulator


def read_log(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / LOG_FILE).read_text().splitlines()]


def test_metrics_reach_tensorboard_and_the_log(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, [TensorBoardTracker(tmp_path)])
    for step in (1, 2):
        writer.write(
            step,
            {"train/loss": 2.5 / step, "train/learning_rate": 1e-4},
            epoch=step / 10,
            shares={"expert_load/layer_1/text": [0.5, 0.25, 0.25]},
        )
    writer.write(2, {"eval/loss": 1.0})
    writer.close()

    events = read_events(tmp_path)
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/learning_rate", "eval/loss"}
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.5), (2, 1.25)]
    bars = events.Histograms("expert_load/layer_1/text")[0].histogram_value
    assert bars.bucket == [0.5, 0.25, 0.25] and bars.bucket_limit == [0.5, 1.5, 2.5]

    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 2]
    assert lines[0]["train/loss"] == 2.5 and lines[0]["epoch"] == 0.1
    assert lines[2]["eval/loss"] == 1.0


def test_resuming_drops_what_was_logged_later(tmp_path: Path) -> None:
    first = MetricsWriter(tmp_path, [TensorBoardTracker(tmp_path)])
    for step in range(1, 6):
        first.write(step, {"train/loss": float(step)})
    first.close()
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"step": 6, "train/lo\n12\n{"train/loss": 1.0}\n\0\0\0')
    second = MetricsWriter(tmp_path, [TensorBoardTracker(tmp_path, start_step=3)], start_step=3)
    second.write(4, {"train/loss": 40.0})
    second.close()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert [(line["step"], line["train/loss"]) for line in read_log(tmp_path)] == expected
    assert [(e.step, e.value) for e in read_events(tmp_path).Scalars("train/loss")] == expected


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).write_text('{"step": 1}\n')
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"train/loss": 1.0})
    writer.flush()
    writer.close()
    assert [line["train/loss"] for line in read_log(tmp_path)] == [1.0]


def test_memory_is_plausible() -> None:
    scalars = memory()
    assert 0.01 < scalars["memory/resident_gib"] <= scalars["memory/peak_gib"] * 1.01
    assert scalars["memory/peak_gib"] == pytest.approx(memory()["memory/peak_gib"], rel=0.2)


def test_a_tracker_that_fails_is_reported_once_and_left_out(tmp_path: Path) -> None:
    class Broken:
        name = "wandb"
        calls = 0

        def log_scalars(self, *arguments: Any) -> None:
            self.calls += 1
            raise RuntimeError("no network\nand a long story")

    broken: Any = Broken()
    lines: list[str] = []
    writer = MetricsWriter(tmp_path, [broken, TensorBoardTracker(tmp_path)], log=lines.append)
    for step in (1, 2):
        writer.write(step, {"train/loss": 1.0})
    writer.flush()
    writer.close()
    assert broken.calls == 1
    assert lines == [
        "note: wandb failed and gets no more metrics: no network. The run goes on, and log.jsonl has all metrics"
    ]
    assert len(read_log(tmp_path)) == 2
    assert [event.step for event in read_events(tmp_path).Scalars("train/loss")] == [1, 2]
