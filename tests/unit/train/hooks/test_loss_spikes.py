"""Loss spikes: which losses are one, and what is reported."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from erniekit.errors import CheckpointError
from erniekit.train.hooks.loss_spikes import LossSpikeHook, spike_limit
from erniekit.train.metrics import RowLoss, StepMetrics
from erniekit.train.metrics_writer import MetricsWriter
from erniekit.train.progress import TrainerProgress, restored_losses


def step(loss: float, rows: list[RowLoss] | None = None, *, skipped: bool = False) -> StepMetrics:
    return StepMetrics(
        *(loss * 10, 10, 10, 10, 1.0, 1.0, 0.0),
        rows=rows or [RowLoss(loss, ["a.jsonl:1"])],
        is_skipped=skipped,
    )


def spikes(
    tmp_path: Path, steps: list[StepMetrics], dist: Any = None, progress: TrainerProgress | None = None
) -> tuple[list[str], list[dict[str, Any]]]:
    """progress: where the steps begin; updated by them."""
    lines: list[str] = []
    progress = progress or TrainerProgress()
    writer = MetricsWriter(tmp_path, start_step=progress.step)
    hook = LossSpikeHook(writer, lines.append, dist)
    for metrics in steps:
        progress.step += 1
        hook.on_step_end(SimpleNamespace(progress=progress), metrics)  # type: ignore[arg-type]
    writer.close()
    return lines, [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_progress_are_no_spikes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = 1 + 3 * np.exp(-np.arange(400) / 80) + rng.standard_normal(400) * 0.1
    assert spikes(tmp_path, [step(float(loss)) for loss in losses])[0] == []


@pytest.mark.parametrize("median", [2.0, 0.0])
def test_a_constant_loss(median: float) -> None:
    limit = spike_limit(np.full(50, median))
    assert limit == pytest.approx(median * 1.24)


def test_a_spike_is_reported_once_with_the_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    calm = [step(2 + float(noise)) for noise in rng.standard_normal(40) * 0.05]
    rows = [RowLoss(2.1, ["a.jsonl:1"]), RowLoss(9.5, [f"bad.jsonl:{number}" for number in range(1, 11)])]
    lines, logged = spikes(
        tmp_path, [*calm[:30], step(6.0, rows), step(7.0), *calm[30:], step(6.5), step(7.5)]
    )
    assert [line["step"] for line in logged] == [31, 44], (
        "the first of two in a row, then the first above all"
    )
    assert len(lines) == 2
    assert lines[0].startswith("step 31: loss 6.0000 is far above the median of the steps before, 1.9935; ")
    assert lines[0].endswith("bad.jsonl:7, bad.jsonl:8 and 2 more")
    assert logged[0]["event"] == "loss_spike" and logged[0]["step"] == 31 and logged[0]["loss"] == 6.0
    assert logged[0]["samples"][-1] == "bad.jsonl:10"


@pytest.mark.parametrize("after", [120, 129, 130, 131, 150])
def test_a_resumed_run_reports_what_one_that_never_stopped_does(tmp_path: Path, after: int) -> None:
    """Also where the first of two spikes is the last step of the checkpoint."""
    rng = np.random.default_rng(0)
    steps = [step(2 + float(noise)) for noise in rng.standard_normal(300) * 0.05]
    steps[129:131] = step(6.0), step(7.0)
    steps[200] = step(5.0)
    whole, _ = spikes(tmp_path, steps)
    progress = TrainerProgress()
    before, _ = spikes(tmp_path, steps[:after], progress=progress)
    saved = json.loads(json.dumps(progress.losses))
    resumed = TrainerProgress(after, losses=restored_losses(saved, tmp_path))
    assert before + spikes(tmp_path, steps[after:], progress=resumed)[0] == whole
    assert [line.split(":")[0] for line in whole] == ["step 130"]
    assert len(resumed.losses) == len(saved) == 102


@pytest.mark.parametrize("values", [[1.0, "2"], [1.0, float("nan")], [1.0, None], [1.0, 1]])
def test_losses_of_a_damaged_checkpoint(tmp_path: Path, values: list[Any]) -> None:
    with pytest.raises(CheckpointError, match="its losses are not valid"):
        restored_losses(values, tmp_path)


def test_no_spike_at_the_start_and_at_skipped_steps(tmp_path: Path) -> None:
    early = [*[step(2.0)] * 19, step(100.0)]
    skipped = [*[step(2.0)] * 40, step(float("nan"), skipped=True), step(2.0)]
    assert spikes(tmp_path, early)[0] == spikes(tmp_path, skipped)[0] == []


def test_the_row_of_another_process(tmp_path: Path) -> None:
    class Others:
        def all_gather_object(self, value: Any) -> list[Any]:
            return [value, [50.0, ["other.jsonl:4"]]]

    lines, _ = spikes(tmp_path, [*[step(2.0)] * 30, step(6.0)], Others())
    assert lines[0].endswith("the row with the largest loss, 50.0000, has the samples other.jsonl:4")
