"""config.json in its four forms, and the tensors that follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.checkpoint.names import hub_tensors
from erniekit.errors import CheckpointError
from erniekit.models.config import ErnieConfig
from erniekit.models.factory import build_model
from erniekit.models.specs import is_router_tensor, parameter_specs
from tests.model_configs import DENSE, FLAT, MOE, nested_config


def test_flat_and_nested_forms_describe_the_same_model() -> None:
    flat, nested = ErnieConfig.from_json(FLAT), ErnieConfig.from_json(nested_config())
    assert flat.moe == nested.moe
    assert flat.moe is not None and flat.moe.sparse_layers == (1, 2, 3)
    assert flat.vision == nested.vision
    assert flat.mrope_section == nested.mrope_section == (1, 1, 2)
    assert flat.media is not None and flat.media.video_placeholder == 9
    assert nested.media is not None and nested.media.video_placeholder == 20


def test_newer_rope_parameters_are_read() -> None:
    assert ErnieConfig.from_json(DENSE | dict(rope_parameters={"rope_theta": 1234.0})).rope_theta == 1234.0


@pytest.mark.parametrize(
    ("start", "end", "interval", "layers"), [(1, -1, 1, (1, 2, 3)), (0, 2, 2, (1,)), (3, 3, 1, (3,))]
)
def test_which_layers_have_experts(start: int, end: int, interval: int, layers: tuple[int, ...]) -> None:
    keys = dict(moe_layer_start_index=start, moe_layer_end_index=end, moe_layer_interval=interval)
    moe = ErnieConfig.from_json(MOE | keys).moe
    assert moe is not None and moe.sparse_layers == layers


@pytest.mark.parametrize(
    "raw", [DENSE, MOE, MOE | dict(moe_num_shared_experts=0, tie_word_embeddings=False), FLAT]
)
def test_specs_are_the_parameters_of_the_model(raw: dict[str, Any]) -> None:
    config = ErnieConfig.from_json(raw)
    specs = {spec.name: (spec.shape, spec.dtype) for spec in parameter_specs(config, "BF16")}
    model = build_model(config, "bfloat16")
    dtypes = {name: str(parameter.dtype) for name, parameter in model.named_parameters()}
    tensors = hub_tensors(model)
    assert specs.keys() == {tensor.name for tensor in tensors}
    for tensor in tensors:
        dtype = "F32" if is_router_tensor(tensor.name) else "BF16"
        assert specs[tensor.name] == (tensor.shape, dtype)
        assert dtypes[tensor.parameter].endswith("float32" if dtype == "F32" else "bfloat16"), tensor.name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(model_type="llama"), "not an ERNIE 4.5 model"),
        (dict(hidden_size=None), "config.json"),
        (dict(moe_k=9), "moe_k 9 must be between 1 and moe_num_experts 3"),
        (dict(moe_num_experts=[3, 4]), "same number of experts"),
        (dict(moe_intermediate_size=8), "has 2 of them"),
        (dict(rope_scaling={"mrope_section": [2, 1, 1]}), "mrope_section"),
        (dict(num_attention_heads=3, num_key_value_heads=2), "not a multiple"),
        (dict(use_bias=True), "use_bias"),
        (dict(temporal_conv_size=4), "temporal_conv_size is 4"),
    ],
)
def test_what_cannot_be_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        ErnieConfig.from_json(FLAT | change)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    raw = {key: value for key, value in DENSE.items() if key != "num_hidden_layers"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"config\.json: key 'num_hidden_layers' is missing"):
        ErnieConfig.from_dir(tmp_path)


def test_broken_or_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found"):
        ErnieConfig.from_dir(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(CheckpointError, match=r"config.json:2: not valid JSON"):
        ErnieConfig.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 1,000"),
        ({"hidden_size": 10**12}, "hidden_size must be a whole number from 1 to 16,777,216"),
        ({"vocab_size": 10**5000}, "vocab_size must be .*a number of many digits"),
        ({"num_attention_heads": 0}, "num_attention_heads must be"),
        ({"rope_theta": 0}, "rope_theta must be a number above 0"),
        ({"rope_theta": 1e300}, "rope_theta must be a number above 0"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be a number above 0 and at most 1"),
        ({"rms_norm_eps": 1e-300}, "rms_norm_eps must be a number above 0"),
        ({"moe_num_experts": 10**6}, "4 layers of 1000000 experts are more than any model has"),
        ({"mlp_layer_types": [["sparse"]] * 4}, 'mlp_layer_types must be "sparse" or "dense"'),
        ({"model_type": ["ernie4_5"] * 1000}, "model_type .* is not an ERNIE 4.5 model"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_asked_for(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        parameter_specs(ErnieConfig.from_json(MOE | change))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads must be a whole number"),
        ({"num_heads": 3}, "hidden_size 8 must be a multiple of 4 x num_heads 3"),
        ({"patch_size": -14}, "patch_size must be a whole number"),
        ({"depth": 10**9}, "depth must be a whole number from 1 to 1,000"),
        ({"mlp_ratio": 0.01}, "mlp_ratio must give a width"),
        ({"in_channels": 10**6}, "in_channels must be a whole number"),
    ],
)
def test_absurd_vision_towers(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ErnieConfig.from_json(FLAT | {"vision_config": FLAT["vision_config"] | change})


def test_json_that_is_nested_deeply(tmp_path: Path) -> None:
    for depth in (150, 100_000):
        (tmp_path / "config.json").write_text('{"a": ' + "[" * depth + "]" * depth + "}")
        with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON: nested"):
            ErnieConfig.from_dir(tmp_path)
