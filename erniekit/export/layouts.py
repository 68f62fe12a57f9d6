"""`config.json` in the forms that engines read: the Hub's flat form, the same with the keys of Paddle's tools, and
transformers' nested form for VL models.

vLLM and SGLang read the flat keys and know the architectures below. FastDeploy infers from `torch_dtype` that linear
weights are [out, in], and from `dtype` alone that they are [in, out]. transformers 5 has built-in code for the nested
form, and runs the remote code of a checkpoint for the flat one.
"""

from __future__ import annotations

import math
from typing import Any

from erniekit.config.choices import CheckpointLayout
from erniekit.errors import CheckpointError
from erniekit.models.config import VISION_NORM_EPS, ErnieConfig, VisionConfig
from erniekit.models.config_keys import DECODER_ALIASES
from erniekit.moe.config import MoeConfig
from erniekit.vl_checkpoint import MediaTokens

Json = dict[str, Any]

# The spellings that vLLM knows; it refuses Paddle's `Ernie4_5_ForCausalLM`.
ARCHITECTURES = {
    "dense": "Ernie4_5ForCausalLM",
    "moe": "Ernie4_5_MoeForCausalLM",
    "vl": "Ernie4_5_VLMoeForConditionalGeneration",
}
# The spellings that ERNIEKit writes, and FastDeploy and SGLang know.
PADDLE_ARCHITECTURES = ARCHITECTURES | {"dense": "Ernie4_5_ForCausalLM"}
MTP_LAYERS = "num_nextn_predict_layers"
HUB_MODEL_TYPES = {"dense": "ernie4_5", "moe": "ernie4_5_moe", "vl": "ernie4_5_moe_vl"}
NESTED_MODEL_TYPE = "ernie4_5_vl_moe"
DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# FastDeploy reads a config that has `dtype` as torch's layout only beside a version above 4.56.0.
_NESTED_SINCE = "5.0.0"
_REPLACED = frozenset(("torch_dtype", "dtype", "rope_parameters", "mlp_layer_types", "text_config"))
_PLACES = frozenset(("_name_or_path", "name_or_path", "_commit_hash"))
_DTYPES = ("dtype", "torch_dtype")
_NESTED_ONLY = frozenset(("vision_config", "image_token_id", "video_token_id"))


def layout_config(
    config: ErnieConfig, layout: CheckpointLayout, dtype: str, video_token_id: int | None = None
) -> Json:
    """The `config.json` of a layout. Raises CheckpointError if it cannot express the architecture.

    dtype: the safetensors element type of most weights; video_token_id: see `transformers_config`.
    """
    if layout == "transformers" and config.family == "vl":
        result = transformers_config(config, dtype, video_token_id)
    else:
        result = paddle_config(config, dtype) if layout == "paddle" else hub_config(config, dtype)
    return _settled(result, DTYPE_NAMES[dtype])


def _settled(content: Json, dtype: str) -> Json:
    """Without the directory or repository that a model was saved from, and with one element type in every section."""
    return {
        key: _settled(value, dtype) if isinstance(value, dict) else dtype if key in _DTYPES else value
        for key, value in content.items()
        if key not in _PLACES
    }


def paddle_config(config: ErnieConfig, dtype: str) -> Json:
    """The `config.json` of the released `-Paddle` checkpoints: the flat form, with `dtype` alone.

    FastDeploy infers from it that linear weights are [in, out].
    """
    result = hub_config(config, dtype)
    result["dtype"] = result.pop("torch_dtype")
    result["architectures"] = [PADDLE_ARCHITECTURES[config.family]]
    result.pop("transformers_version", None)
    if config.family == "vl":
        # FastDeploy takes the first number of mrope_section for that of time; without it, it reads freq_allocation.
        result["rope_scaling"] = {
            key: value for key, value in result["rope_scaling"].items() if key != "mrope_section"
        }
    return result


def hub_config(config: ErnieConfig, dtype: str) -> Json:
    """The flat `config.json` of the released `-PT` checkpoints.

    Keys that engines need are set from `config`; other keys of the base model are kept. `dtype` is the safetensors
    element type of most weights. Raises CheckpointError if the flat form cannot express the architecture.
    """
    raw, nested = config.raw, "text_config" in config.raw
    kept = {key: value for key, value in raw.items() if key not in _REPLACED and key not in DECODER_ALIASES}
    if nested:
        kept = {key: value for key, value in kept.items() if key not in _NESTED_ONLY}
        kept |= {
            k: v
            for k, v in raw["text_config"].items()
            if v is not None and k not in _REPLACED and k not in DECODER_ALIASES
        }
    result = kept | _decoder(config) | {"rope_theta": config.rope_theta, "torch_dtype": DTYPE_NAMES[dtype]}
    result |= {"architectures": [ARCHITECTURES[config.family]], "model_type": HUB_MODEL_TYPES[config.family]}
    if config.family == "dense" or config.head_dim * config.num_attention_heads != config.hidden_size:
        result["head_dim"] = config.head_dim
    if config.moe is not None:
        result |= _flat_moe(config, config.moe)
    if config.vision is not None and config.media is not None:
        result |= _flat_vision(config, config.vision, config.media)
    if config.family == "moe" or MTP_LAYERS in result:
        # Exports have no multi-token-prediction head.
        result[MTP_LAYERS] = 0
    return result


def transformers_config(config: ErnieConfig, dtype: str, video_token_id: int | None = None) -> Json:
    """The nested `config.json` of transformers' Ernie4_5_VLMoeConfig, for a VL model.

    Follows transformers' convert_ernie4_5_vl_moe_to_hf, with the rotary settings of the base model. Keys of a flat base
    model that the nested form does not have are left out. `video_token_id` is for a flat base model, which has none.
    """
    moe, vision, media = config.moe, config.vision, config.media
    if moe is None or vision is None or media is None:
        raise ValueError("only vision-language models have a nested config")
    base = config.raw if "text_config" in config.raw else {}
    sparse = ["sparse" if i in moe.sparse_layers else "dense" for i in range(config.num_hidden_layers)]
    rope = {"rope_type": "default", "rope_theta": config.rope_theta, "mrope_section": list(_section(config))}
    text = {"use_cache": True} | base.get("text_config", {}) | _decoder(config)
    text |= {
        key: config.raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config.raw
    }
    text |= {"model_type": "ernie4_5_vl_moe_text", "mlp_layer_types": sparse, "rope_parameters": rope}
    text |= {"moe_num_experts": moe.num_experts, "moe_intermediate_size": list(moe.intermediate_sizes)}
    text |= {
        "moe_k": moe.top_k,
        "moe_num_shared_experts": moe.num_shared_experts,
        "moe_norm_min": moe.norm_min,
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        text["head_dim"] = config.head_dim
    if MTP_LAYERS in text:
        text[MTP_LAYERS] = 0
    result = {key: value for key, value in base.items() if key != "torch_dtype"}
    result |= {"architectures": [ARCHITECTURES["vl"]], "model_type": NESTED_MODEL_TYPE}
    result |= {
        "dtype": DTYPE_NAMES[dtype],
        "transformers_version": base.get("transformers_version", _NESTED_SINCE),
    }
    result |= {"text_config": text, "vision_config": base.get("vision_config", {}) | _nested_vision(vision)}
    result |= {"tie_word_embeddings": config.tie_word_embeddings, "image_token_id": media.image_placeholder}
    result["video_token_id"] = media.video_placeholder if video_token_id is None else video_token_id
    return result | _markers(media)


def _decoder(config: ErnieConfig) -> Json:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_bias": config.use_bias,
    }


def _flat_moe(config: ErnieConfig, moe: MoeConfig) -> Json:
    start, end, interval = _layer_range(config, moe)
    vl = config.family == "vl"
    result = {
        "moe_num_experts": [moe.num_experts] * 2 if vl else moe.num_experts,
        "moe_intermediate_size": list(moe.intermediate_sizes) if vl else moe.intermediate_sizes[0],
        "moe_k": moe.top_k,
        "moe_num_shared_experts": moe.num_shared_experts,
        "moe_layer_start_index": start,
        "moe_layer_end_index": end,
        "moe_layer_interval": interval,
    }
    return result


def _layer_range(config: ErnieConfig, moe: MoeConfig) -> tuple[Any, Any, int]:
    """First and last index of the layers with experts ([text, vision] in VL models), and their interval.

    From the base model, with -1 (the last layer) resolved, since FastDeploy does not resolve it.
    """
    raw = config.raw
    if raw.get("moe_layer_start_index") is not None and raw.get("moe_layer_end_index") is not None:
        last = config.num_hidden_layers - 1
        end = raw["moe_layer_end_index"]
        resolved = (
            [last if e == -1 else e for e in end] if isinstance(end, list) else last if end == -1 else end
        )
        return raw["moe_layer_start_index"], resolved, int(raw.get("moe_layer_interval") or 1)
    layers = moe.sparse_layers
    for interval in range(1, config.num_hidden_layers + 1) if layers else ():
        if layers == tuple(i for i in range(layers[0], layers[-1] + 1) if (i + 1) % interval == 0):
            first, last = layers[0], layers[-1]
            return ([first] * 2, [last] * 2, interval) if config.family == "vl" else (first, last, interval)
    raise CheckpointError(
        f"the layers with experts {list(layers)} are not evenly spaced, which the Hub's config.json cannot express; "
        "use --layout transformers"
    )


def _flat_vision(config: ErnieConfig, vision: VisionConfig, media: MediaTokens) -> Json:
    section = _section(config)
    # Without mrope_section vLLM loads the model and silently uses 1-D positions for images.
    scaling = {"type": "default", **(config.raw.get("rope_scaling") or {}), "mrope_section": list(section)}
    inner = {} if "text_config" in config.raw else config.raw["vision_config"]
    return {
        "rope_3d": True,
        "rope_scaling": scaling,
        "freq_allocation": section[2],
        "im_patch_id": media.image_placeholder,
        **_markers(media),
        "pixel_hidden_size": vision.hidden_size,
        "spatial_conv_size": vision.spatial_merge_size,
        "temporal_conv_size": vision.temporal_merge_size,
        "use_temporal_conv": True,
        "vision_config": {
            "model_type": "DFNRope_vision_transformer",
            **inner,
            "depth": vision.depth,
            "embed_dim": vision.hidden_size,
            "hidden_size": vision.hidden_size,
            "hidden_act": "quick_gelu",
            "mlp_ratio": _mlp_ratio(vision),
            "num_heads": vision.num_heads,
            "in_channels": vision.in_channels,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.spatial_merge_size,
        },
    }


def _mlp_ratio(vision: VisionConfig) -> int | float:
    """The ratio from which readers compute the exact MLP width, by multiplying and truncating."""
    ratio = vision.intermediate_size / vision.hidden_size
    while int(vision.hidden_size * ratio) < vision.intermediate_size:
        ratio = math.nextafter(ratio, math.inf)
    return int(ratio) if ratio.is_integer() else ratio


def _nested_vision(vision: VisionConfig) -> Json:
    return {
        "model_type": "ernie4_5_vl_moe_vision",
        "depth": vision.depth,
        "hidden_size": vision.hidden_size,
        "hidden_act": "quick_gelu",
        "intermediate_size": vision.intermediate_size,
        "num_heads": vision.num_heads,
        "in_channels": vision.in_channels,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "temporal_merge_size": vision.temporal_merge_size,
        "rms_norm_eps": VISION_NORM_EPS,
    }


def _markers(media: MediaTokens) -> Json:
    return {
        "image_start_token_id": media.image_start,
        "image_end_token_id": media.image_end,
        "video_start_token_id": media.video_start,
        "video_end_token_id": media.video_end,
    }


def _section(config: ErnieConfig) -> tuple[int, int, int]:
    assert config.mrope_section is not None
    return config.mrope_section
