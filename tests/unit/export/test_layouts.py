"""Both forms of config.json: what engines need is there, and each form says the same model as the other."""

import copy
from typing import Any

import pytest

from erniekit.config.choices import CheckpointLayout
from erniekit.create.shapes import shape_config
from erniekit.errors import CheckpointError
from erniekit.export.layouts import (
    ARCHITECTURES,
    HUB_MODEL_TYPES,
    hub_config,
    layout_config,
    transformers_config,
)
from erniekit.models.config import ErnieConfig

TOKENS = {
    "im_patch_id": 9,
    "image_start_token_id": 14,
    "image_end_token_id": 15,
    "video_start_token_id": 16,
    "video_end_token_id": 17,
}


def shape(name: str) -> dict[str, Any]:
    return shape_config(name) | (TOKENS if "vl" in name else {})


def read(raw: dict[str, Any]) -> ErnieConfig:
    return ErnieConfig.from_json(raw)


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-moe", "tiny-vl", "0.3b", "21b-a3b", "vl-28b-a3b"])
def test_hub_config_keeps_a_good_base_as_it_is(name: str) -> None:
    raw = shape(name)
    written = hub_config(read(raw), "F32" if "tiny" in name else "BF16")
    assert {key: written[key] for key in raw} == raw
    assert read(written) == read(raw)


def test_hub_config_fills_what_engines_read_and_a_base_may_leave_out() -> None:
    raw = shape("tiny-vl")
    for key in (
        "freq_allocation",
        "rope_3d",
        "rope_scaling",
        "pixel_hidden_size",
        "use_temporal_conv",
        "hidden_act",
    ):
        del raw[key]
    del raw["vision_config"]["embed_dim"], raw["rope_theta"], raw["torch_dtype"]
    raw |= {"architectures": ["Ernie4_5_VLForConditionalGeneration"], "moe_layer_end_index": [-1, 2]}
    raw |= {
        "freq_allocation": 24,
        "dtype": "float32",
        "num_nextn_predict_layers": 1,
        "a_key_of_tomorrow": [1],
    }
    written = hub_config(read(raw), "BF16")
    assert written["architectures"] == [ARCHITECTURES["vl"]]
    assert written["rope_scaling"] == {"type": "default", "mrope_section": [20, 20, 24]}
    assert (written["freq_allocation"], written["rope_theta"], written["hidden_act"]) == (
        24,
        500000.0,
        "silu",
    )
    assert written["moe_layer_end_index"] == [2, 2]
    assert written["pixel_hidden_size"] == written["vision_config"]["embed_dim"] == 64
    assert written["torch_dtype"] == "bfloat16" and "dtype" not in written
    assert written["num_nextn_predict_layers"] == 0
    assert written["a_key_of_tomorrow"] == [1]
    assert "head_dim" not in written


def test_text_configs_of_transformers_five_become_what_others_read() -> None:
    raw = shape("tiny-moe") | {"moe_layer_end_index": -1, "architectures": None, "dtype": "float32"}
    theta = {"rope_type": "default", "rope_theta": 1234.0}
    del raw["rope_theta"], raw["torch_dtype"], raw["num_nextn_predict_layers"]
    written = hub_config(read(raw | {"rope_parameters": theta}), "F32")
    assert written["rope_theta"] == 1234.0 and "rope_parameters" not in written
    assert (written["moe_layer_end_index"], written["num_nextn_predict_layers"]) == (2, 0)
    assert written["architectures"] == [ARCHITECTURES["moe"]]
    dense = hub_config(read({k: v for k, v in shape("tiny-dense").items() if k != "head_dim"}), "F32")
    assert dense["head_dim"] == 64
    assert dense["model_type"] == HUB_MODEL_TYPES["dense"]


def test_nested_form_and_back_again() -> None:
    flat = read(shape("tiny-vl"))
    nested = transformers_config(flat, "F32", video_token_id=20)
    assert nested["video_token_id"] == 20
    assert nested["text_config"]["mlp_layer_types"] == ["dense", "sparse", "sparse"]
    assert nested["vision_config"]["intermediate_size"] == 256
    assert nested["text_config"]["rope_parameters"]["mrope_section"] == [22, 22, 20]
    assert "moe_capacity" not in nested and "torch_dtype" not in nested
    again = hub_config(read(copy.deepcopy(nested)), "F32")
    assert read(again) == flat
    assert "text_config" not in again and "video_token_id" not in again
    # A nested base keeps the keys that nobody here knows.
    nested["text_config"]["router_aux_loss_coef"] = 0.5
    rewritten = transformers_config(read(nested), "BF16")
    assert rewritten["text_config"]["router_aux_loss_coef"] == 0.5
    assert rewritten["dtype"] == "bfloat16" and rewritten["video_token_id"] == 20


@pytest.mark.parametrize("layout", ["hub", "transformers", "paddle"])
def test_every_section_states_the_element_type(layout: CheckpointLayout) -> None:
    """transformers 5 writes it in each section, and engines differ in which one they read."""
    nested = transformers_config(read(shape("tiny-vl")), "BF16")
    for section in ("text_config", "vision_config"):
        nested[section]["dtype"] = "bfloat16"
    written = layout_config(read(nested), layout, "F32")
    found = {
        key: value
        for section in (written, *(part for part in written.values() if isinstance(part, dict)))
        for key, value in section.items()
        if "dtype" in key
    }
    assert set(found.values()) == {"float32"}


def test_layer_ranges_of_nested_configs() -> None:
    nested = transformers_config(read(shape("tiny-vl")), "F32")
    nested["text_config"] |= {"num_hidden_layers": 6, "mlp_layer_types": ["dense", "sparse"] * 3}
    flat = hub_config(read(nested), "F32")
    assert (flat["moe_layer_start_index"], flat["moe_layer_end_index"]) == ([1, 1], [5, 5])
    assert flat["moe_layer_interval"] == 2
    assert read(flat).moe == read(nested).moe
    nested["text_config"]["mlp_layer_types"] = ["sparse", "dense", "dense", "sparse", "sparse", "dense"]
    with pytest.raises(CheckpointError, match="not evenly spaced"):
        hub_config(read(nested), "F32")


@pytest.mark.parametrize(("hidden", "width"), [(64, 256), (48, 100), (40, 47), (40, 93), (1280, 3420)])
def test_mlp_ratio_gives_the_width_back(hidden: int, width: int) -> None:
    nested = transformers_config(read(shape("tiny-vl")), "F32")
    nested["vision_config"] |= {"hidden_size": hidden, "intermediate_size": width}
    assert read(hub_config(read(nested), "F32")).vision == read(nested).vision


def test_only_vl_models_have_a_nested_form() -> None:
    with pytest.raises(ValueError, match="vision-language"):
        transformers_config(read(shape("tiny-dense")), "F32")


def test_keys_under_other_names_are_written_under_the_first() -> None:
    raw = shape("tiny-vl") | {"num_experts": 4, "moe_layer_start_index": None}
    del raw["moe_num_experts"]
    written = hub_config(read(raw), "F32")
    assert written["moe_num_experts"] == [4, 4] and "num_experts" not in written
    assert written["moe_layer_start_index"] == [1, 1]
    assert read(written) == read(raw)
