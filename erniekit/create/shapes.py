"""Named shapes of ERNIE 4.5 models: the `config.json` of each, small ones for experiments and the released ones.

Released sizes: ERNIE's model cards and the configuration classes of transformers and PaddleFormers; of the 300B ERNIE's
configuration for pretraining, and shapes in its `-Paddle` release. The 424B has the language model of the 300B; the
width of its vision experts was chosen to give the number of parameters in its name, without reading its `config.json`.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erniekit.errors import ConfigError
from erniekit.models.config import ErnieConfig

_COMMON: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "use_bias": False,
    "use_cache": True,
}
_SMALL = {**_COMMON, "max_position_embeddings": 8192, "vocab_size": 512, "torch_dtype": "float32"}
_RELEASED = {**_COMMON, "max_position_embeddings": 131072, "vocab_size": 103424, "torch_dtype": "bfloat16"}
_DENSE = {"architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5"}
_MOE = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "model_type": "ernie4_5_moe",
    "moe_capacity": [64, 64, 64],
    "moe_gate": "topk",
    "moe_layer_interval": 1,
    "moe_use_aux_free": True,
    "num_nextn_predict_layers": 0,
}
_VL = {
    "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
    "model_type": "ernie4_5_moe_vl",
    "freq_allocation": 20,
    "moe_capacity": [64, 64, 64],
    "moe_gate": "top2_fused",
    "moe_layer_interval": 1,
    "moe_multimodal_dispatch_use_allgather": "v2-alltoall-unpad-text",
    "moe_use_aux_free": True,
    "rope_3d": True,
    "rope_scaling": {"type": "default", "mrope_section": [22, 22, 20]},
    "spatial_conv_size": 2,
    "temporal_conv_size": 2,
    "use_rmsnorm": True,
    "use_temporal_conv": True,
}
_VISION = {
    "model_type": "DFNRope_vision_transformer",
    "attn_sep": True,
    "hidden_act": "quick_gelu",
    "in_channels": 3,
    "mlp_ratio": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "vit_first_fwd_bsz": 128,
}
_TOWER = {"depth": 32, "hidden_size": 1280, "num_heads": 16}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }


def _experts(number: Any, top_k: int, intermediate: Any, start: Any) -> dict[str, Any]:
    return {
        "moe_num_experts": number,
        "moe_k": top_k,
        "moe_intermediate_size": intermediate,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": start,
    }


# hidden_size / num_attention_heads is 128 in every VL shape: the real mrope_section adds up to half of that.
# In MoE shapes intermediate_size / num_key_value_heads is the width of the shared experts, if there are any, as in
# 21B-A3B: llama.cpp's converter computes it so.
_LARGE = {
    **_RELEASED,
    **_sizes(8192, 28672, 54, 64, 8),
    "tie_word_embeddings": False,
}
_LARGE_EXPERTS = {"moe_num_shared_experts": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny-dense": {**_DENSE, **_SMALL, **_sizes(256, 512, 3, 4, 2), "head_dim": 64},
    "tiny-moe": {**_MOE, **_SMALL, **_sizes(256, 512, 3, 8, 4), **_experts(8, 2, 64, 1)},
    "tiny-vl": {
        **_VL,
        **_SMALL,
        **_sizes(256, 512, 3, 2, 1),
        **_experts([4, 4], 2, [64, 32], [1, 1]),
        "vision_config": {**_VISION, "depth": 2, "hidden_size": 64, "num_heads": 2},
    },
    "0.3b": {**_DENSE, **_RELEASED, **_sizes(1024, 3072, 18, 16, 2), "head_dim": 128},
    "21b-a3b": {**_MOE, **_RELEASED, **_sizes(2560, 12288, 28, 20, 4), **_experts(64, 6, 1536, 1)},
    "vl-28b-a3b": {
        **_VL,
        **_RELEASED,
        **_sizes(2560, 12288, 28, 20, 4),
        **_experts([64, 64], 6, [1536, 512], [1, 1]),
        "vision_config": {**_VISION, **_TOWER},
    },
    "300b-a47b": {**_MOE, **_LARGE, **_experts(64, 8, 3584, 3), **_LARGE_EXPERTS},
    "vl-424b-a47b": {
        **_VL,
        **_LARGE,
        **_experts([64, 64], 8, [3584, 1536], [3, 3]),
        **_LARGE_EXPERTS,
        "vision_config": {**_VISION, **_TOWER},
    },
}
# The ids of image and video tokens in released vocabularies, by the keys of `config.json`.
_MEDIA_TOKENS = {
    "im_patch_id": 100295,
    "image_start_token_id": 101304,
    "image_end_token_id": 101305,
    "video_start_token_id": 101306,
    "video_end_token_id": 101307,
}
_RELEASE_NAME = re.compile(
    r"ernie-4\.5-((?:vl-)?[\d.]+b(?:-a\d+b)?)(?:-(?:pt|thinking|base-pt|base|paddle|base-paddle))?"
)


def released_architecture(path: str) -> ErnieConfig | None:
    """The architecture of a released model by the last part of its path, such as baidu/ERNIE-4.5-0.3B-PT.

    None for any other name.
    """
    match = _RELEASE_NAME.fullmatch(Path(path).name.lower())
    if match is None or match[1] not in SHAPES:
        return None
    return ErnieConfig.from_json(
        shape_config(match[1]) | (_MEDIA_TOKENS if match[1].startswith("vl-") else {})
    )


def shape_config(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The `config.json` of a named shape, without the ids of media tokens, which are the tokenizer's.

    `overrides` are "key=value"; dots reach into objects (`vision_config.depth=4`); values are JSON or plain words.
    Keys that follow from others (`moe_layer_end_index`, `pixel_hidden_size`, `vision_config.embed_dim`) are derived
    afterwards. Raises ConfigError for an unknown shape, an unknown key or a value of another type.
    """
    if name not in SHAPES:
        raise ConfigError(f"there is no shape {name!r}{_nearest(name, SHAPES)}; shapes: {', '.join(SHAPES)}")
    config = copy.deepcopy(SHAPES[name])
    for override in overrides:
        _override(config, name, override)
    if "moe_num_experts" in config:
        # Not -1 ("the last"): FastDeploy and vLLM's remote-code path use the number unchanged.
        last = config["num_hidden_layers"] - 1
        start = config["moe_layer_start_index"]
        config["moe_layer_end_index"] = [last] * len(start) if isinstance(start, list) else last
    if "vision_config" in config:
        width = config["vision_config"]["hidden_size"]
        config["pixel_hidden_size"] = config["vision_config"]["embed_dim"] = width
    return config


def _override(config: dict[str, Any], name: str, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: write it as key=value, for example --set num_hidden_layers=4")
    target, path = config, key.split(".")
    for depth, part in enumerate(path):
        known = [k for k in target if isinstance(target[k], dict) or depth == len(path) - 1]
        if part not in known:
            raise ConfigError(f"--set {override}: shape {name} has no key {part!r}{_nearest(part, known)}")
        if depth < len(path) - 1:
            target = target[part]
    target[path[-1]] = _as_type_of(target[path[-1]], text, override)


def _as_type_of(old: Any, text: str, override: str) -> Any:
    """`text` parsed as JSON, or else a string. A whole number may become a float; other types must match."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(old):
        raise ConfigError(f"--set {override}: the value must be {_kind(old)} such as {json.dumps(old)}")
    return value


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", int: "a whole number", float: "a number", str: "a word", list: "a JSON list"}
    return kinds.get(type(value), "a JSON object")


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
