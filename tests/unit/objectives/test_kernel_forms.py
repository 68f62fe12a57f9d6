"""A whole model with the kernels of a GPU has the loss and the gradients that it has with those of a CPU."""

from __future__ import annotations

import numpy as np
import pytest

from erniekit.kernels.choice import FORMS, use_forms
from erniekit.models.ernie import ErnieModel
from erniekit.models.layer_runner import CheckpointedLayers
from erniekit.objectives.routing import RouterWeights
from erniekit.objectives.sft import SftObjective
from tests.closeness import assert_all_close, assert_close
from tests.models import apply_lora
from tests.unit.kernels.forms import TRITON
from tests.unit.objectives.rows import gradients_of, make_model, make_row, totals_of

ROW = make_row([5, 4], images=1)


def _gradients(model: ErnieModel) -> tuple[float, dict[str, np.ndarray]]:
    objective = SftObjective(model, router_weights=RouterWeights(balance=0.1, z=0.01))
    total = objective(ROW, totals_of([ROW])).total
    total.backward()
    return float(total), gradients_of(model)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("form", ["plain", TRITON])
def test_forms_of_a_gpu(form: str, method: str) -> None:
    model = make_model()
    if method == "lora":
        apply_lora(model, rank=2, alpha=4, dropout=0, targets=["q_proj", "*experts*"], seed=0)
    else:
        model.model.layer_runner = CheckpointedLayers(recompute=range(model.config.num_hidden_layers))
    loss, expected = _gradients(model)
    with use_forms(**{kernel: form for kernel, names in FORMS.items() if form in names}):
        found_loss, found = _gradients(model)
    assert_close(found_loss, loss)
    assert_all_close(found, expected)
