"""Adapters over a quantized base on several processes: the training of one process, also continued from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from erniekit.train import model as train_model
from tests.closeness import FLOAT32, assert_close
from tests.distributed.layouts import trainings
from tests.distributed.processes import run
from tests.distributed.settings import STEPS, assert_same, vl_setting

pytestmark = pytest.mark.slow
# Name -> processes, and the layout.
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "experts": (2, {"parallel.expert": 2}),
    "context": (2, {"parallel.context": 2, "parallel.shard": "optimizer"}),
    "continued": (2, {"parallel.shard": "parameters", "train.recompute": "layers"}),
    "sharded": (4, {"parallel.expert": 2, "parallel.shard": "parameters", "train.recompute": "layers"}),
}


def quantized_trainings(world: int, runs: list[dict[str, Any]], resume: bool = False) -> dict[str, Any]:
    """Train `runs`; returns the error of the base in each."""
    describe = train_model.describe_quantized
    with mock.patch.object(train_model, "describe_quantized", wraps=describe) as described:
        trainings(world, runs, resume)
    return {"errors": [call.args[2] for call in described.call_args_list]}


def test_every_layout_trains_as_one_process(tmp_path: Path) -> None:
    setting = {k: v for k, v in vl_setting(tmp_path).items() if not k.startswith("loss.")}
    setting |= {"lora.enabled": True, "lora.rank": 4, "model.quantize": "int4"}
    setting |= {"checkpoint.save_every": STEPS // 2, "checkpoint.keep": 9}
    runs = {
        name: setting | layout | {"train.output_dir": str(tmp_path / name)}
        for name, (_, layout) in LAYOUTS.items()
    }
    errors = run(1, quantized_trainings, 1, [runs["one"]])
    shutil.copytree(tmp_path / "one", tmp_path / "continued")
    shutil.rmtree(tmp_path / "continued" / f"checkpoint-{STEPS:06d}")
    # Where there is no checkpoint yet, to resume is to start.
    errors += run(2, quantized_trainings, 2, [runs[n] for n in ("experts", "context", "continued")], True)
    errors += run(4, quantized_trainings, 4, [runs["sharded"]])
    for name in runs:
        assert_same(tmp_path / "one", tmp_path / name)
    found = [error for of_rank in errors for error in of_rank["errors"]]
    assert len(found) == 1 + 2 * 2 + 2 + 4
    assert_close(found, [found[0]] * len(found), FLOAT32)
