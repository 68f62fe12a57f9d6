"""Adapters: what they attach to, that they start as nothing, and that merging changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from erniekit.checkpoint import hub
from erniekit.checkpoint.weights import load_model
from erniekit.errors import CheckpointError, ConfigError
from erniekit.lora.adapters import load_adapter, read_adapter, read_adapter_index
from erniekit.lora.merge import AdapterMerge
from erniekit.lora.targets import group_matches
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.models.row import RowInputs
from tests.adapters import write_adapter
from tests.closeness import MODEL, assert_close
from tests.model_configs import FLAT
from tests.models import apply_lora, hub_values, save_weights

TARGETS = ["q_proj", "model.layers.*.mlp.experts.*", "model.resampler_model.spatial_linear.0"]


@pytest.fixture
def model() -> ErnieModel:
    model = build_model(ErnieConfig.from_json(FLAT))
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        shift = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        parameter.set_value(
            paddle.to_tensor((rng.standard_normal(parameter.shape) * 0.2 + shift).astype("float32"))
        )
    return model


def _row() -> RowInputs:
    ids = np.array([30, 14, 9, 15, 31, 32])
    return RowInputs(
        input_ids=ids,
        position_ids=np.tile(np.arange(6), (3, 1)),
        modality=np.array([0, 1, 1, 1, 0, 0], np.int8),
        cu_seqlens=np.array([0, 6], np.int32),
        patches=np.random.default_rng(1).integers(0, 256, (4, 588)).astype(np.uint8),
        grid_thw=np.array([[1, 2, 2]], np.int32),
        media_positions=np.array([2]),
    )


def _apply(model: ErnieModel, **changes: object) -> list[object]:
    settings = dict(rank=2, alpha=4.0, dropout=0.0, targets=TARGETS, seed=3) | changes
    return apply_lora(model, **settings)  # type: ignore[arg-type]


def _randomise_b(model: ErnieModel) -> None:
    rng = np.random.default_rng(5)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.set_value(paddle.to_tensor(rng.standard_normal(parameter.shape).astype("float32")))


def test_matches_by_name_and_pattern_reach_every_expert(model: ErnieModel) -> None:
    matches = _apply(model)
    groups = {group.pattern: group.modules for group in group_matches(matches)}  # type: ignore[arg-type]
    assert groups == {
        "model.layers.*.self_attn.q_proj": 4,
        "model.layers.*.mlp.experts.*.gate_proj": 18,
        "model.layers.*.mlp.experts.*.up_proj": 18,
        "model.layers.*.mlp.experts.*.down_proj": 18,
        "model.resampler_model.spatial_linear.*": 1,
    }
    trainable = set(hub_values(model, lambda p: None if p.stop_gradient else p))
    assert len(trainable) == 2 * len(matches)
    assert all(".lora_" in name for name in trainable)


def test_a_target_without_match_says_what_there_is(model: ErnieModel) -> None:
    with pytest.raises(ConfigError, match=r"'q_prj' matches no module.*Did you mean 'q_proj'"):
        _apply(model, targets=["k_proj", "q_prj"])


def test_adapters_start_as_nothing_and_every_one_learns(model: ErnieModel) -> None:
    before = model(_row()).hidden.numpy()
    _apply(model)
    np.testing.assert_array_equal(model(_row()).hidden.numpy(), before)
    model(_row()).hidden.sum().backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(".experts." in name for name in learning)
    assert all(".lora_" in name for name in learning)


def test_dropout_acts_in_training_only(model: ErnieModel) -> None:
    _apply(model, dropout=0.5)
    _randomise_b(model)
    model.train()
    assert not np.array_equal(model(_row()).hidden.numpy(), model(_row()).hidden.numpy())
    model.eval()
    np.testing.assert_array_equal(model(_row()).hidden.numpy(), model(_row()).hidden.numpy())


def test_files_give_the_adapters_back(model: ErnieModel, tmp_path: Path) -> None:
    _apply(model)
    _randomise_b(model)
    expected = model(_row()).hidden.numpy()
    _write(model, tmp_path)
    _randomise_b(model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.set_value(paddle.zeros_like(parameter))
    load_adapter(model, tmp_path)
    np.testing.assert_array_equal(model(_row()).hidden.numpy(), expected)


def test_an_adapter_of_another_rank_does_not_fit(model: ErnieModel, tmp_path: Path) -> None:
    _apply(model)
    _write(model, tmp_path)
    other = build_model(ErnieConfig.from_json(FLAT))
    _apply(other, rank=3)
    with pytest.raises(CheckpointError, match="lora_A"):
        load_adapter(other, tmp_path)


def test_merged_weights_give_what_the_adapters_gave(model: ErnieModel, tmp_path: Path) -> None:
    base, adapter, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    for directory in (base, adapter, merged):
        directory.mkdir()
    _save_base(model, base)
    _apply(model)
    model.model.layers[1].mlp.gate.weight_1.stop_gradient = False
    model.model.layers[1].mlp.gate.weight_1.set_value(paddle.ones([16, 3]) * 0.3)
    _randomise_b(model)
    expected = model(_row()).hidden.numpy()
    _write(model, adapter)

    found = hub.read_index(base)
    merge = AdapterMerge(adapter, {name: info.shape for name, info in found.items()})
    specs = [hub.TensorSpec(info.name, info.dtype, info.shape) for info in found.values()]
    hub.write_shards(merged, specs, lambda name: merge(found[name], "F32"))
    assert (len(merge.modules), len(merge.whole)) == (4 + 3 * 18 + 1, 1)
    (merged / "config.json").write_text((base / "config.json").read_text())
    assert_close(load_model(merged)(_row()).hidden, expected, MODEL)


def test_an_adapter_left_over_is_an_error(model: ErnieModel, tmp_path: Path) -> None:
    _apply(model)
    _write(model, tmp_path)
    assert "model.layers.0.self_attn.q_proj.lora_A.weight" in read_adapter_index(tmp_path)
    with pytest.raises(CheckpointError, match="59 of 59 adapters have no weight"):
        AdapterMerge(tmp_path, {"model.norm.weight": (4,)})


def _write(model: ErnieModel, directory: Path) -> None:
    write_adapter(directory, model, base_path="base", rank=2, alpha=4.0, dropout=0.0)


def _save_base(model: ErnieModel, directory: Path) -> None:
    import json

    save_weights(model, directory)
    (directory / "config.json").write_text(json.dumps(FLAT))


def test_an_empty_adapter_is_refused(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "m", "r": 4, "lora_alpha": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    halves = {"A": np.zeros((0, 64), np.float32), "B": np.zeros((64, 0), np.float32)}
    save_file(
        {f"{name}{half}.weight": array for half, array in halves.items()},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"lora_A\.weight is empty: its shape is \[0, 64\]"):
        read_adapter(tmp_path)
