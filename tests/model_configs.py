"""config.json of small models: dense, with experts, and vision-language in both of its forms."""

from __future__ import annotations

from typing import Any

DENSE: dict[str, Any] = dict(
    model_type="ernie4_5",
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
MOE = DENSE | dict(
    model_type="ernie4_5_moe",
    num_hidden_layers=4,
    moe_num_experts=3,
    moe_k=2,
    moe_intermediate_size=8,
    moe_num_shared_experts=2,
    moe_layer_start_index=1,
    moe_layer_end_index=-1,
)
FLAT = MOE | dict(
    model_type="ernie4_5_moe_vl",
    moe_num_experts=[3, 3],
    moe_intermediate_size=[8, 4],
    moe_layer_start_index=[1, 1],
    moe_layer_end_index=[5, 3],
    rope_scaling={"type": "default", "mrope_section": [1, 1, 2]},
    im_patch_id=9,
    image_start_token_id=14,
    image_end_token_id=15,
    video_start_token_id=16,
    video_end_token_id=17,
    vision_config=dict(
        depth=1, hidden_size=8, mlp_ratio=2, num_heads=2, patch_size=14, in_channels=3, spatial_merge_size=2
    ),
)


def nested_config() -> dict[str, Any]:
    """FLAT as transformers writes it."""
    text = {key: value for key, value in FLAT.items() if key not in ("vision_config", "rope_scaling")}
    text |= dict(moe_num_experts=3, mlp_layer_types=["dense", "sparse", "sparse", "sparse"])
    text |= dict(rope_parameters={"rope_theta": 500000.0, "mrope_section": [1, 1, 2]})
    vision = FLAT["vision_config"] | dict(intermediate_size=16, temporal_merge_size=2)
    tokens = {key: FLAT[key] for key in FLAT if key.endswith("_token_id")}
    names = dict(model_type="ernie4_5_vl_moe", image_token_id=9, video_token_id=20)
    return names | tokens | dict(text_config=text, vision_config=vision)
