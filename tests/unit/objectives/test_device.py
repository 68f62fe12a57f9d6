"""Between upload and loss a row never makes the host wait for the device, nor copies anything to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import paddle
import pytest

from erniekit.config.choices import ALL_LINEAR
from erniekit.kernels.choice import use_forms
from erniekit.kernels.grouped_gemm import ExpertRows
from erniekit.models.layer_runner import CheckpointedLayers
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.preference import PreferenceSettings
from erniekit.objectives.routing import RouterWeights
from erniekit.objectives.sft import SftObjective
from tests.models import apply_lora
from tests.unit.objectives.pairs import make_answers, pair_row
from tests.unit.objectives.rows import filler, make_model, make_row, totals_of

WAITS = ("numpy", "tolist", "item", "__array__", "__bool__", "__int__", "__float__", "__index__")
UPLOADS = ("to_tensor", "tensor", "assign")
# The forms of other devices than CPUs, of which some read counts on the host.
KERNELS = ("permute", "rms_norm", "rope", "swiglu", "cross_entropy", "attention", "embedding")
FORMS = dict.fromkeys(KERNELS, "plain")
# The plain grouped product is a loop, which asks for its counts; those for GPUs do not.
READ_ON_HOST = [(ExpertRows, "counts")]
WEIGHTS = RouterWeights(balance=0.1, z=0.01)


@contextmanager
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, reading a tensor on the host and making one from values of the host are errors."""
    allowed = [False]

    def forbid(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **keywords: Any) -> Any:
            if not allowed[0]:
                pytest.fail(f"{name} is called")
            return function(*arguments, **keywords)

        return called

    def allow(kind: type, name: str) -> cached_property[Any]:
        function = kind.__dict__[name].func

        def called(self: Any) -> Any:
            allowed[0] = True
            try:
                return function(self)
            finally:
                allowed[0] = False

        prop = cached_property(called)
        prop.__set_name__(kind, name)
        return prop

    with monkeypatch.context() as patch, use_forms(**FORMS):
        for name in WAITS:
            patch.setattr(paddle.Tensor, name, forbid(f"Tensor.{name}", getattr(paddle.Tensor, name)))
        for name in UPLOADS:
            patch.setattr(paddle, name, forbid(f"paddle.{name}", getattr(paddle, name)))
        for kind, name in READ_ON_HOST:
            patch.setattr(kind, name, allow(kind, name))
        yield


ROWS = {"images": make_row([9, 6, 4], images=2), "text": make_row([7, 8]), "filler": filler()}


@pytest.mark.parametrize("kind", ["full", "LoRA", "recomputed"])
@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_computed_without_waiting(monkeypatch: pytest.MonkeyPatch, row: str, kind: str) -> None:
    model = make_model()
    if kind == "LoRA":
        apply_lora(model, rank=2, alpha=4.0, dropout=0.1, targets=ALL_LINEAR, seed=1)
    if kind == "recomputed":
        model.model.layer_runner = model.vision_model.layer_runner = CheckpointedLayers(recompute=range(9))
    objective = SftObjective(model, chunk_tokens=4, router_weights=WEIGHTS)
    uploaded = objective.upload(ROWS[row])
    with no_waiting(monkeypatch):
        output = objective(uploaded, totals_of(list(ROWS.values())))
        output.total.backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("share", [False, True])
def test_a_row_of_pairs_is_computed_without_waiting(monkeypatch: pytest.MonkeyPatch, share: bool) -> None:
    row = pair_row(make_answers(3, seed=1), share=share)
    model = make_model()
    reference = paddle.linspace(-9, -3, 6)
    objective = DpoObjective(
        model, PreferenceSettings("simpo"), lambda row: reference, 4, router_weights=WEIGHTS
    )
    uploaded, totals = objective.upload(row), totals_of([row])
    with no_waiting(monkeypatch):
        output = objective(uploaded, totals)
        output.total.backward()
    assert model.model.embed_tokens.weight.grad is not None
