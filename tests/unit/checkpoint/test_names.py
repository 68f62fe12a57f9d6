"""The Hub's tensors are ranges of the parameters in memory: each element once, under its name, in the files' order."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from erniekit.checkpoint.names import HubTensor, assemble, by_parameter, hub_tensors, take
from erniekit.lora.targets import add_adapters
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model, parameter_specs
from tests.model_configs import FLAT

EXPERTS = "model.layers.1.mlp.experts"


@pytest.fixture
def model() -> ErnieModel:
    model = build_model(ErnieConfig.from_json(FLAT))
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.set_value(paddle.to_tensor(rng.standard_normal(parameter.shape).astype(np.float32)))
    return model


def test_every_tensor_of_the_hub_is_a_range_of_one_parameter(model: ErnieModel) -> None:
    tensors = hub_tensors(model)
    shapes = {spec.name: spec.shape for spec in parameter_specs(model.config)}
    assert {tensor.name: tensor.shape for tensor in tensors} == shapes
    sizes = {name: int(parameter.size) for name, parameter in model.named_parameters()}
    grouped = by_parameter(tensors)
    assert set(grouped) == set(sizes)
    for name, parts in grouped.items():
        bounds = [0, *(part.stop for part in parts)]
        assert [part.start for part in parts] == bounds[:-1]
        assert bounds[-1] == sizes[name]
    # Two stacks a layer and modality instead of three tensors an expert.
    stacked = [name for name in grouped if name.startswith(EXPERTS)]
    assert stacked == [
        f"{EXPERTS}.{kind}.{half}.weight" for kind in ("text", "vision") for half in ("gate_up", "down")
    ]


def test_gates_come_before_ups_and_experts_after_each_other(model: ErnieModel) -> None:
    stack = dict(model.named_parameters())[f"{EXPERTS}.vision.gate_up.weight"]
    tensors = {tensor.name: tensor for tensor in hub_tensors(model)}
    width = stack.shape[1] // 2
    # Vision experts come after the three text experts.
    up = take(stack, tensors[f"{EXPERTS}.4.up_proj.weight"])
    np.testing.assert_array_equal(up.numpy(), stack.numpy()[1, width:])
    names = [tensor.name for tensor in hub_tensors(model) if tensor.name.startswith(EXPERTS)]
    projections = ("gate_proj", "up_proj", "down_proj")
    assert names == [f"{EXPERTS}.{e}.{projection}.weight" for e in range(6) for projection in projections]


def test_any_span_of_a_parameter_comes_from_its_tensors(model: ErnieModel) -> None:
    name = f"{EXPERTS}.text.gate_up.weight"
    stack = dict(model.named_parameters())[name]
    parts = by_parameter(hub_tensors(model))[name]
    stored = {part.name: take(stack, part).numpy() for part in parts}
    asked = []

    def read(part: HubTensor, start: int, stop: int) -> tuple[np.ndarray, str]:
        asked.append(part.name)
        return stored[part.name].reshape(-1)[start:stop], "F32"

    flat = stack.numpy().reshape(-1)
    size = parts[0].stop
    for start, stop in ((0, len(flat)), (3, size + 1), (size - 1, 3 * size), (5, 5), (size, size + 2)):
        asked.clear()
        np.testing.assert_array_equal(assemble(parts, read, "F32", (start, stop)), flat[start:stop])
        assert asked == [
            part.name for part in parts if part.start < stop and part.stop > start and start < stop
        ]


def test_adapters_follow_the_weight_that_they_adapt(model: ErnieModel) -> None:
    chosen = [f"{EXPERTS}.0.up_proj", f"{EXPERTS}.2.gate_proj", f"{EXPERTS}.2.down_proj"]
    add_adapters(model, chosen, rank=2, alpha=4.0, dropout=0.0, seed=0)
    tensors = hub_tensors(model)
    names = [tensor.name for tensor in tensors if tensor.name.startswith(EXPERTS)]
    for module in chosen:
        place = names.index(f"{module}.weight")
        assert names[place + 1 : place + 3] == [f"{module}.lora_A.weight", f"{module}.lora_B.weight"]
    assert len([name for name in names if ".lora_" in name]) == 2 * len(chosen)
    adapters = {tensor.name: tensor.shape for tensor in tensors if ".lora_" in tensor.name}
    shapes = {spec.name: spec.shape for spec in parameter_specs(model.config)}
    for module in chosen:
        out, inner = shapes[f"{module}.weight"]
        assert adapters[f"{module}.lora_A.weight"] == (2, inner)
        assert adapters[f"{module}.lora_B.weight"] == (out, 2)
