from __future__ import annotations

from typing import Any

import pytest

from erniekit.create.shapes import SHAPES, released_architecture, shape_config
from erniekit.errors import ConfigError
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import parameter_specs

MEDIA = (
    "im_patch_id",
    "image_start_token_id",
    "image_end_token_id",
    "video_start_token_id",
    "video_end_token_id",
)


def parse(raw: dict[str, Any]) -> ErnieConfig:
    return ErnieConfig.from_json(raw | dict.fromkeys(MEDIA, 0))


@pytest.mark.parametrize(
    ("shape", "family", "parameters"),
    [
        ("tiny-dense", "dense", 1_902_336),
        ("tiny-moe", "moe", 2_103_056),
        ("tiny-vl", "vl", 2_439_952),
        ("0.3b", "dense", 360_748_032),
        ("21b-a3b", "moe", 21_825_437_888),
        ("vl-28b-a3b", "vl", 29_399_294_336),
        ("300b-a47b", "moe", 299_484_163_264),
        ("vl-424b-a47b", "vl", 423_526_285_184),
    ],
)
def test_shapes_are_valid_and_have_the_size_that_they_are_named_for(
    shape: str, family: str, parameters: int
) -> None:
    config = parse(shape_config(shape))
    assert config.family == family
    assert sum(spec.size for spec in parameter_specs(config)) == parameters


def test_all_shapes_are_covered() -> None:
    assert list(SHAPES) == [
        "tiny-dense",
        "tiny-moe",
        "tiny-vl",
        "0.3b",
        "21b-a3b",
        "vl-28b-a3b",
        "300b-a47b",
        "vl-424b-a47b",
    ]


@pytest.mark.parametrize("shape", ["tiny-moe", "21b-a3b"])
def test_shared_experts_have_the_width_that_llama_cpp_computes(shape: str) -> None:
    config = parse(shape_config(shape))
    assert config.moe is not None
    assert config.moe.shared_intermediate_size == config.intermediate_size // config.num_key_value_heads


def test_vl_has_the_keys_that_engines_read() -> None:
    config = shape_config("tiny-vl")
    assert config["rope_scaling"]["mrope_section"] == [22, 22, 20]
    assert config["hidden_size"] // config["num_attention_heads"] == 128
    assert config["vision_config"]["embed_dim"] == config["vision_config"]["hidden_size"]
    assert config["pixel_hidden_size"] == config["vision_config"]["hidden_size"]
    assert config["moe_layer_end_index"] == [2, 2]
    assert "auto_map" not in config
    assert "torch_dtype" in config and "dtype" not in config


def test_overrides_reach_into_objects_and_derived_keys_follow() -> None:
    overrides = [
        "num_hidden_layers=5",
        "vision_config.hidden_size=96",
        "moe_num_experts=[6, 6]",
        "rope_theta=10000",
    ]
    config = shape_config("tiny-vl", overrides)
    assert config["moe_layer_end_index"] == [4, 4]
    assert config["vision_config"]["embed_dim"] == config["pixel_hidden_size"] == 96
    assert config["moe_num_experts"] == [6, 6]
    assert config["rope_theta"] == 10000.0
    assert shape_config("tiny-vl")["num_hidden_layers"] == 3
    assert shape_config("tiny-moe", ["torch_dtype=bfloat16"])["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("shape", "override", "message"),
    [
        ("tiny-vll", "", "no shape 'tiny-vll'; did you mean 'tiny-vl'"),
        ("TINY-MOE", "", "did you mean 'tiny-moe'"),
        ("elephant", "", "shapes: tiny-dense, tiny-moe"),
        ("tiny-moe", "moe_kk=3", "did you mean 'moe_k'"),
        ("tiny-vl", "vision_config.dept=3", "did you mean 'depth'"),
        ("tiny-vl", "vision.depth=3", "did you mean 'vision_config'"),
        ("tiny-vl", "moe_num_experts=8", "a JSON list such as [4, 4]"),
        ("tiny-moe", "moe_k=two", "a whole number such as 2"),
        ("tiny-moe", "moe_k=2.5", "a whole number"),
        ("tiny-moe", "tie_word_embeddings=0", "a boolean such as true"),
        ("tiny-moe", "moe_k", "write it as key=value"),
    ],
)
def test_wrong_names_and_values_say_what_is_allowed(shape: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shape_config(shape, [override] if override else [])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("baidu/ERNIE-4.5-0.3B-PT", 360_748_032),
        ("models/ERNIE-4.5-21B-A3B-Thinking", 21_825_437_888),
        ("baidu/ERNIE-4.5-VL-28B-A3B-Thinking", 29_399_294_336),
        ("ERNIE-4.5-300B-A47B-PT", 299_484_163_264),
        ("baidu/ERNIE-4.5-VL-424B-A47B-Base-PT", 423_526_285_184),
    ],
)
def test_released_models_are_known_by_name(path: str, parameters: int) -> None:
    found = released_architecture(path)
    assert found is not None and sum(spec.size for spec in parameter_specs(found)) == parameters


@pytest.mark.parametrize("path", ["m", "baidu/ERNIE-4.5-7B-PT", "ERNIE-4.5-0.3B-PT-mine", "tiny-dense"])
def test_other_names_are_not_released_models(path: str) -> None:
    assert released_architecture(path) is None
