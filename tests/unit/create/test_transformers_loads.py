"""transformers loads what `erniekit init` writes, and needs nothing else and misses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def nested_config(flat: dict[str, Any]) -> Any:
    """The flat VL config of the Hub as transformers' nested one (its convert_ernie4_5_vl_moe_to_hf says how)."""
    from transformers import Ernie4_5_VLMoeConfig

    vision, first, last = flat["vision_config"], flat["moe_layer_start_index"], flat["moe_layer_end_index"]
    same = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    )
    same += "max_position_embeddings rms_norm_eps use_bias moe_k moe_intermediate_size moe_num_shared_experts"
    text = {key: flat[key] for key in (*same.split(), "tie_word_embeddings", "hidden_act")}
    text["moe_num_experts"] = flat["moe_num_experts"][0]
    text["mlp_layer_types"] = [
        "sparse" if min(first) <= layer <= max(last) else "dense"
        for layer in range(flat["num_hidden_layers"])
    ]
    section = flat["rope_scaling"]["mrope_section"]
    text["rope_parameters"] = dict(rope_type="default", rope_theta=flat["rope_theta"], mrope_section=section)
    same = "depth hidden_size hidden_act num_heads in_channels patch_size spatial_merge_size"
    tower = {key: vision[key] for key in same.split()}
    tower |= dict(intermediate_size=vision["hidden_size"] * vision["mlp_ratio"], rms_norm_eps=1e-6)
    tokens = {key: flat[key] for key in flat if key.endswith(("_start_token_id", "_end_token_id"))}
    return Ernie4_5_VLMoeConfig(
        text_config=text,
        vision_config=tower | dict(temporal_merge_size=flat["temporal_conv_size"]),
        image_token_id=flat["im_patch_id"],
        video_token_id=flat["im_patch_id"],
        tie_word_embeddings=flat["tie_word_embeddings"],
        **tokens,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "model_class"),
    [
        ("tiny-dense", "Ernie4_5ForCausalLM"),
        ("tiny-moe", "Ernie4_5_MoeForCausalLM"),
        ("tiny-vl", "Ernie4_5_VLMoeForConditionalGeneration"),
    ],
)
def test_loading_info_is_empty(shape: str, model_class: str, tiny: Callable[[str], Path]) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = tiny(shape)
    raw = json.loads((directory / "config.json").read_text())
    assert raw["architectures"] == [model_class]
    config = dict(config=nested_config(raw)) if shape == "tiny-vl" else {}
    model, info = getattr(transformers, model_class).from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, **config
    )
    assert not {key: value for key, value in info.items() if value}
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([[5, 300, 301, 302]])).logits
    assert logits.shape == (1, 4, 512)
    # Tied embeddings of standard deviation 1 / sqrt(hidden_size) on normalised states.
    assert 0.5 < logits.std() < 2.0
    if shape != "tiny-vl":
        assert model.generation_config.eos_token_id == 2
