"""Several processes skip the same steps as one does, and stop together, whatever is sharded."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from erniekit.errors import ErnieKitError
from erniekit.objectives.sft import SftObjective
from tests.distributed.layouts import trainings
from tests.distributed.processes import run
from tests.distributed.settings import assert_same
from tests.integration.training_setup import chats, make_model, read_log, write_chats

pytestmark = pytest.mark.slow


def poisoned(world: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """`trainings` with a loss of NaN in the row with the sample chats.jsonl:3, on the process that has it."""
    original = SftObjective.__call__

    def call(objective: SftObjective, batch: Any, *arguments: Any) -> Any:
        output = original(objective, batch, *arguments)
        if not any(name.endswith("chats.jsonl:3") for name in batch.batch.sample_ids):
            return output
        return replace(output, total=output.total * math.nan, loss_sum=output.loss_sum * math.nan)

    with mock.patch.object(SftObjective, "__call__", call):
        try:
            return trainings(world, runs)
        except ErnieKitError as error:
            return {"error": str(error)}


def test_all_processes_skip_and_stop_together(tmp_path: Path) -> None:
    setting = {
        "model.path": str(make_model(tmp_path / "model", "tiny-moe")),
        "data.train": str(write_chats(tmp_path / "chats.jsonl", chats(40, images=False))),
        "data.max_length": 80,
        "data.workers": 0,
        "data.cache_dir": str(tmp_path / "cache"),
        "optimizer.epsilon": 1e-3,
        "train.rows_per_step": 4,
        "train.max_steps": 4,
        "train.on_nonfinite": "skip",
        "train.recompute": "layers",
        "log.every": 1,
        "parallel.device": "cpu",
        "parallel.threads": 1,
    }
    one = tmp_path / "one"
    shards = ("gradients", "parameters")
    runs = [
        {**setting, "train.output_dir": str(tmp_path / shard), "parallel.shard": shard} for shard in shards
    ]
    stop = {**setting, "train.on_nonfinite": "stop", "train.output_dir": str(tmp_path / "stop")}
    (_,) = run(1, poisoned, 1, [{**setting, "train.output_dir": str(one)}])
    skipped = [line["step"] for line in read_log(one) if "train/loss" not in line]
    assert skipped
    results = run(2, poisoned, 2, [*runs, stop])
    for shard in shards:
        assert_same(one, tmp_path / shard, steps=4 - len(skipped))
    (error,) = {result["error"] for result in results}
    assert f"step {skipped[0]}: the loss is not a finite number in the samples " in error
    saved = list((tmp_path / "stop" / "nonfinite").glob("*/rows-*.json"))
    assert len(saved) == 1
    (row,) = json.loads(saved[0].read_text())["rows"]
    assert any(sample["id"].endswith("chats.jsonl:3") for sample in row["samples"])
