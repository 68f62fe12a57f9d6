"""Tensors, gradients and layers that are spread over processes."""

import json
from pathlib import Path

import pytest

from tests.distributed.processes import run
from tests.distributed.shard_checks import shard_checks, stored_checks
from tests.model_configs import FLAT
from tests.models import save_weights
from tests.unit.objectives.rows import make_model


@pytest.mark.parametrize("world", [2, 3])
def test_tensors_come_together_and_sums_are_shared_out(world: int) -> None:
    run(world, shard_checks, world)


@pytest.mark.parametrize("world", [2, 3])
def test_layers_are_whole_only_while_they_are_computed(tmp_path: Path, world: int) -> None:
    """At any time no more than two layers are whole: the one that is computed, and the next one."""
    save_weights(make_model(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(FLAT))
    for found in run(world, stored_checks, world, str(tmp_path)):
        assert found["layers"] == 4
        assert found["most"] <= 0.8 * found["complete"]
