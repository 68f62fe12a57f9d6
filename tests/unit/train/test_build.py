"""How the parts of a run are put together."""

from __future__ import annotations

from pathlib import Path

import pytest

from erniekit.optim.adamw import AdamW
from erniekit.parallel.data_parallel import BackwardHook
from erniekit.train.build import build_optimizer
from erniekit.train.model import PreparedModel
from erniekit.train.recompute import backward_plan
from tests.models import hub_values
from tests.unit.objectives.rows import make_model
from tests.unit.train.plans import config


@pytest.mark.parametrize("rows", [1, 2])
def test_gradients_of_several_rows_are_summed_layer_by_layer(tmp_path: Path, rows: int) -> None:
    model = make_model()
    trained = [(name, p) for name, p in model.named_parameters() if not p.stop_gradient]
    names = list(hub_values(model))
    prepared = PreparedModel(model, trained, names, backward_plan(model.config, names))
    optimizer = build_optimizer(config(tmp_path, f"train.rows_per_step={rows}"), prepared)
    assert isinstance(optimizer, AdamW)
    hooks = getattr(model.model.layer_runner, "hooks", None)
    assert isinstance(hooks, BackwardHook) == (rows > 1)
