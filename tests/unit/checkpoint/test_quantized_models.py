"""A base model that is quantized while it is loaded: which weights, in which form, and from which process."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import paddle
import pytest
from paddle.base import core

from erniekit.checkpoint import weights as checkpoint_weights
from erniekit.checkpoint.hub import read_span, spec_bytes
from erniekit.checkpoint.names import hub_tensors, named_weights, take
from erniekit.checkpoint.quantizer import BITS, Quantizer, make_quantizer, relative_error, stored_bytes
from erniekit.checkpoint.weights import load_fully_sharded, load_model
from erniekit.config.choices import Quantize
from erniekit.distributed.mesh import Mesh
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.distributed.process_group import ProcessGroup
from erniekit.errors import ConfigError
from erniekit.kernels import quantize as kernel
from erniekit.layers import QuantizedParameter
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.models.quantize import quantize_layers
from erniekit.models.specs import is_quantized_tensor, parameter_specs
from erniekit.objectives.sft import SftObjective
from tests.closeness import assert_all_close, assert_close
from tests.model_configs import FLAT
from tests.models import apply_lora, save_weights
from tests.unit.objectives.rows import make_model, make_row, totals_of

CHOICES: tuple[Quantize, ...] = ("int8", "int4")


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several groups in the 16 columns of a row, the last one shorter."""
    monkeypatch.setattr(kernel, "GROUP_SIZES", {8: 6, 4: 6})


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_weights(make_model(), directory)
    (directory / "config.json").write_text(json.dumps(FLAT))
    return directory


def load(directory: Path, choice: Quantize) -> tuple[ErnieModel, Quantizer]:
    quantizer = Quantizer(BITS[choice])
    return load_model(directory, quantizer=quantizer), quantizer


def values_of(model: ErnieModel) -> dict[str, np.ndarray]:
    """Every tensor of the Hub, as the model computes with it."""
    weights = {
        name: kernel.dequantize(weight.value, "float32") if isinstance(weight, QuantizedParameter) else weight
        for name, weight in named_weights(model)
    }
    return {tensor.name: take(weights[tensor.parameter], tensor).numpy() for tensor in hub_tensors(model)}


@pytest.fixture(scope="module")
def original(directory: Path) -> dict[str, np.ndarray]:
    return values_of(load_model(directory))


@pytest.mark.parametrize(("choice", "low", "high"), [("int8", 0.002, 0.006), ("int4", 0.03, 0.09)])
def test_linear_layers_of_the_decoder_are_quantized_and_nothing_else(
    directory: Path, original: dict[str, np.ndarray], choice: Quantize, low: float, high: float
) -> None:
    model, quantizer = load(directory, choice)
    found = values_of(model)
    assert list(found) == list(original)
    changed = {name for name in original if not np.array_equal(found[name], original[name])}
    assert changed == {spec.name for spec in parameter_specs(model.config) if is_quantized_tensor(spec.name)}
    for part in (
        "0.mlp.up_proj",
        "3.self_attn.o_proj",
        "1.mlp.shared_experts.down_proj",
        "2.mlp.experts.5.gate_proj",
    ):
        assert f"model.layers.{part}.weight" in changed
    squares = np.zeros(2)
    for name in changed:
        alone = kernel.quantize(paddle.to_tensor(original[name]), BITS[choice])
        np.testing.assert_array_equal(found[name], kernel.dequantize(alone, "float32").numpy(), err_msg=name)
        squares += [
            np.square(values, dtype="f8").sum() for values in (original[name] - found[name], original[name])
        ]
    assert_close(relative_error(quantizer.sums), (squares[0] / squares[1]) ** 0.5)
    assert low < relative_error(quantizer.sums) < high
    assert all(p.stop_gradient for n, p in model.named_parameters() if n.endswith((".codes", ".scales")))


def test_a_model_in_memory_takes_the_bytes_of_the_plan(directory: Path) -> None:
    for choice in CHOICES:
        model, _ = load(directory, choice)
        held = sum(p.numpy().nbytes for p in model.parameters())
        assert held == sum(stored_bytes(spec, choice) for spec in parameter_specs(model.config))
    specs = parameter_specs(model.config)
    assert sum(stored_bytes(spec, "none") for spec in specs) == sum(map(spec_bytes, specs))


LAYOUTS = [
    ("int8", ParallelDims(3), True),
    ("int4", ParallelDims(2), True),
    ("int4", ParallelDims(3, 3), False),
    ("int4", ParallelDims(6, 3), True),
]


@pytest.mark.parametrize(("choice", "dims", "fully"), LAYOUTS)
def test_values_and_error_do_not_depend_on_the_layout(
    directory: Path, choice: Quantize, dims: ParallelDims, fully: bool
) -> None:
    """Codes and scales of all processes, put together, are those of one process bit for bit."""
    whole, expected = load(directory, choice)
    sums, parts = np.zeros(2), {}
    for rank in range(dims.world if fully else dims.expert):
        found, quantizer = load_part(directory, choice, dims, rank, fully=fully)
        sums += quantizer.sums
        for name, values in found.items():
            share = rank % dims.expert if ".experts." in name else 0
            parts.setdefault((name, share), []).append(values)
    for (name, share), found in parts.items():
        values = dict(whole.named_parameters())[name].numpy()
        several = dims.expert if ".experts." in name else 1
        values = np.split(values, several)[share].reshape(-1)
        if sum(map(len, found)) == len(values):
            found = [np.concatenate(found)]
        for one in found:
            np.testing.assert_array_equal(one, values, err_msg=name, strict=True)
    assert len(parts) > 2 * 4 * 4
    assert_close(sums, expected.sums)


def load_part(
    directory: Path, choice: Quantize, dims: ParallelDims, rank: int, *, fully: bool
) -> tuple[dict[str, np.ndarray], Quantizer]:
    """Codes and scales that one process holds, 1-D, and what it measured. Nothing is sent while a model is loaded."""
    quantizer, parts = Quantizer(BITS[choice]), {}
    if fully:
        groups = {name: ProcessGroup(r, r.index(rank)) for name, r in dims.group_ranks(rank).items()}
        model, sharded = load_fully_sharded(
            directory, "float32", Mesh(dims, rank, **groups), quantizer=quantizer
        )
        parts = sharded.parts
    else:
        model = load_model(directory, expert_rank=rank, expert_ranks=dims.expert, quantizer=quantizer)
    found = {name: parts.get(name, parameter) for name, parameter in model.named_parameters()}
    return {
        name: values.numpy().reshape(-1)
        for name, values in found.items()
        if name.endswith((".codes", ".scales"))
    }, quantizer


@pytest.mark.parametrize("choice", CHOICES)
def test_adapters_over_it_are_those_over_its_values(
    directory: Path, choice: Quantize, tmp_path: Path
) -> None:
    """Loss and gradients, as with a float32 model that has the values of the quantized one."""
    quantized, _ = load(directory, choice)
    plain = load_model(directory)
    values = values_of(quantized)
    for tensor in hub_tensors(plain):
        parameter = dict(plain.named_parameters())[tensor.parameter]
        flat = parameter.numpy().reshape(-1)
        flat[tensor.start : tensor.stop] = values[tensor.name].reshape(-1)
        parameter.set_value(paddle.to_tensor(flat.reshape(parameter.shape)))
    row = make_row([9, 6, 4], images=1)
    outputs = []
    for model in (quantized, plain):
        apply_lora(model, rank=2, alpha=4.0, dropout=0.0, targets=TARGETS, seed=3)
        randomise_b(model)
        loss = SftObjective(model)(row, totals_of([row])).total
        loss.backward()
        outputs.append((loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert_close(outputs[0][0], outputs[1][0])
    assert len(outputs[1][1]) > 40
    assert_all_close(outputs[0][1], outputs[1][1])


TARGETS = ["q_proj", "down_proj", "model.layers.*.mlp.experts.*", "model.resampler_model.spatial_linear.0"]


def randomise_b(model: ErnieModel) -> None:
    """So that what is before an adapter has a gradient, too."""
    rng = np.random.default_rng(5)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.set_value(
                paddle.to_tensor(0.3 * rng.standard_normal(parameter.shape).astype("float32"))
            )


def test_one_tensor_is_in_memory_besides_the_model(tmp_path: Path) -> None:
    """Loading allocates what the model has and a few times one tensor of the Hub: the whole is never there twice."""
    raw = FLAT | dict(hidden_size=128, moe_intermediate_size=[128, 128], moe_num_experts=[8, 8])
    (tmp_path / "config.json").write_text(json.dumps(raw))
    model = build_model(ErnieConfig.from_json(raw))
    for parameter in model.parameters():
        parameter.set_value(paddle.ones_like(parameter))
    save_weights(model, tmp_path)
    whole = sum(int(parameter.size) * 4 for parameter in model.parameters())
    del model, parameter
    alive: list[weakref.ref[np.ndarray]] = []
    read_bytes: list[int] = []

    def read(*arguments: Any) -> np.ndarray:
        array = read_span(*arguments)
        alive.append(weakref.ref(array))
        read_bytes.append(sum(found.nbytes for ref in alive if (found := ref()) is not None))
        return array

    gc.collect()
    before = core.host_memory_stat_current_value("Allocated", 0)
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    with mock.patch.object(checkpoint_weights, "read_span", read):
        parameters = load(tmp_path, "int4")[0].parameters()
    held = core.host_memory_stat_current_value("Allocated", 0) - before
    peak = core.host_memory_stat_peak_value("Allocated", 0) - before
    largest = 128 * 128 * 4
    assert held < 0.4 * whole
    assert peak < held + 12 * largest < 0.5 * whole
    assert len(parameters) > 100 and len(read_bytes) > 100 and max(read_bytes) <= 2 * largest


def test_int4_needs_pairs_of_columns() -> None:
    model = build_model(ErnieConfig.from_json(FLAT | dict(moe_intermediate_size=[8, 5])))
    with pytest.raises(ConfigError, match=r"int4 stores two columns in a byte.*shape .* 5\].*use int8"):
        quantize_layers(model, 4)
    quantize_layers(model, 8)


def test_none_is_no_quantizer() -> None:
    assert make_quantizer("none") is None
    quantizer = make_quantizer("int8")
    assert quantizer is not None and quantizer.bits == 8
    assert relative_error(quantizer.sums) == 0
