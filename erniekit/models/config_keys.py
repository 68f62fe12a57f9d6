"""The known keys of config.json of ERNIE 4.5 models, and their effect here.

Sources: the released `-PT` and `-Paddle` files, transformers' Ernie4_5Config, Ernie4_5_MoeConfig and
Ernie4_5_VLMoeConfig, the released remote code, ERNIEKit and PaddleFormers. A key is `used`, or `fixed`: one computation
is implemented, and a file that asks for another one is refused, or has `no_effect` on what training computes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["dense", "moe", "vl"]


@dataclass(frozen=True)
class Key:
    """The effect of a key. values: the accepted values of a fixed key; note: the reason, for the documentation."""

    effect: Literal["used", "fixed", "none"]
    values: tuple[Any, ...] = ()
    note: str = ""


Keys = dict[str, Key]


def _used(names: str, note: str = "") -> Keys:
    return {name: Key("used", (), note) for name in names.split()}


def _fixed(names: str, *values: Any, note: str = "") -> Keys:
    return {name: Key("fixed", values, note) for name in names.split()}


def _no_effect(names: str, note: str) -> Keys:
    return {name: Key("none", (), note) for name in names.split()}


# Alternative names that transformers (attribute_map) or Baidu's classes accept.
DECODER_ALIASES = {
    "num_experts": "moe_num_experts",
    "num_experts_per_tok": "moe_k",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
}
VISION_ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"}

_ANY: Keys = {
    **_used("model_type tie_word_embeddings"),
    **_used("dtype torch_dtype", "dtype of exports; does not change the computation"),
    **_used("eos_token_id", "ends answers, unless generation_config.json sets it"),
    **_used("bos_token_id pad_token_id", "written to exports"),
    **_no_effect(
        "architectures auto_map transformers_version paddlenlp_version paddleformers_version model_name name_or_path "
        "_name_or_path _commit_hash tokenizer_class id2label label2id problem_type finetuning_task "
        "task_specific_params",
        "names and versions",
    ),
    **_no_effect(
        "attn_implementation _attn_implementation _attn_implementation_autoset torchscript use_bfloat16 "
        "chunk_size_feed_forward use_cache return_dict output_hidden_states output_attentions tie_encoder_decoder "
        "is_decoder is_encoder_decoder tf_legacy_loss cross_attention_hidden_size decoder_start_token_id "
        "sep_token_id initializer_range",
        "execution in other libraries",
    ),
    **_no_effect(
        "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups temperature top_k "
        "top_p typical_p repetition_penalty length_penalty diversity_penalty no_repeat_ngram_size "
        "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate "
        "forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty "
        "suppress_tokens begin_suppress_tokens prefix",
        "generation settings",
    ),
    **_fixed(
        "quantization_config", None, note="quantized weights cannot be trained: use the bfloat16 release"
    ),
    **_fixed("is_quantized add_cross_attention", False),
    **_fixed("pruned_heads", {}),
}

_DECODER: Keys = {
    **_ANY,
    **_used(
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "rms_norm_eps max_position_embeddings"
    ),
    **_used("rope_theta rope_parameters rope_scaling", "rotary embedding; only the default type"),
    **_fixed("hidden_act", "silu", "swish"),
    **_fixed("use_bias attention_bias mlp_bias", False),
    **_fixed("use_rmsnorm", True),
    **_fixed("partial_rotary_factor compression_ratio", 1.0),
    **_fixed("use_qk_norm qk_layernorm", False),
    **_fixed("sliding_window attention_window_size", None),
    **_fixed("use_sliding_window", False),
    **_fixed("layer_types", "full_attention", note="in every layer"),
    **_fixed(
        "remove_tail_layer",
        False,
        note="layers that the pretraining configuration counts but the model does not have",
    ),
    **_fixed(
        "attention_dropout attention_dropout_prob attention_probs_dropout_prob hidden_dropout hidden_dropout_prob",
        0.0,
    ),
    **_no_effect(
        "use_flash_attention use_flash_attn use_flash_attn_with_mask use_sparse_flash_attn use_var_len_flash_attn "
        "use_mem_eff_attn use_attn_mask_start_row_indices fuse_attn_ffn fuse_gate_detach_matmul fuse_linear fuse_ln "
        "fuse_rms_norm fuse_rope fuse_softmax_mask fuse_swiglu use_fast_ln cachekv_quant using_precision_check",
        "kernels for the same computation",
    ),
    **_no_effect(
        "recompute recompute_granularity recompute_use_reentrant refined_recompute skip_recompute_ops "
        "no_recompute_layers offload_recompute_inputs use_recompute use_recompute_lm_head use_recompute_loss_fn "
        "use_recompute_moe use_recompute_mtp use_recompute_resampler loss_subbatch_seqlen "
        "use_sparse_head_and_loss_fn use_fused_head_and_loss_fn",
        "memory options of Baidu's trainer",
    ),
    **_no_effect(
        "tensor_parallel_degree tensor_parallel_rank tensor_parallel_output tensor_model_parallel_size "
        "sequence_parallel pipeline_parallel_degree pp_seg_method virtual_pp_degree add_tail_layers "
        "disable_ffn_model_parallel use_ep_comm_overlap enable_delay_scale_loss num_acc_steps micro_batch_size "
        "offload_pp_data_chunk_size",
        "parallelism options of Baidu's trainer",
    ),
    **_no_effect(
        "dpo_config token_balance_loss token_balance_seqlen ignored_index max_sequence_length",
        "loss and data options of Baidu's trainer; set them in the run's configuration",
    ),
    **_no_effect("weight_share_add_bias", "bias of the output layer; only with use_bias"),
    **_no_effect(
        "num_nextn_predict_layers multi_token_pred_lambda mtp_loss_scaling_factor enable_mtp_magic_send",
        "multi-token prediction; its weights are not loaded",
    ),
}

_MOE: Keys = {
    **_used(
        "moe_num_experts moe_k moe_intermediate_size moe_num_shared_experts moe_norm_min moe_layer_start_index "
        "moe_layer_end_index moe_layer_interval mlp_layer_types"
    ),
    **_fixed("moe_gate", "topk", "topk_fused", "top2", "top2_fused", note="all select the top moe_k experts"),
    **_fixed("moe_gate_act", "softmax"),
    **_fixed("scoring_func", "softmax"),
    **_fixed("moe_norm_gate_logits norm_topk_prob moe_use_aux_free", True),
    **_fixed("routed_scaling_factor", 1.0),
    **_fixed(
        "moe_group_experts moe_fuse_experts moe_num_attn_experts moe_reverse_token_drop moe_use_token_type_bias",
        False,
    ),
    **_fixed("moe_dropout_prob moe_all_to_all_dropout", 0.0),
    **_no_effect("moe_capacity", "no token is dropped, as in inference engines"),
    **_no_effect("moe_dense_experts_token_type_id", "token type that does not occur in data"),
    **_no_effect("sinkhorn_2gate sinkhorn_temp", "only with another moe_gate"),
    **_no_effect(
        "moe_group moe_rank moe_world_size moe_group_origin moe_multimodal_dispatch_use_allgather "
        "moe_use_size_all2all moe_layer_feed_fake_token moe_with_send_router_loss",
        "parallelism options of Baidu's trainer",
    ),
    **_no_effect(
        "router_aux_loss_coef output_router_logits moe_aux_loss_lambda moe_z_loss_lambda moe_orthogonal_loss_lambda "
        "moe_group_orthogonal_loss global_aux_loss",
        "router losses; set them in the run's configuration (loss.*)",
    ),
}

_MEDIA_IDS = "image_start_token_id image_end_token_id video_start_token_id video_end_token_id"
_FLAT_VL: Keys = {
    **_used(f"vision_config im_patch_id {_MEDIA_IDS} freq_allocation"),
    **_used("pixel_hidden_size", "must equal vision_config.hidden_size"),
    **_used("spatial_conv_size", "must equal vision_config.spatial_merge_size"),
    **_fixed("temporal_conv_size", 2),
    **_fixed("rope_3d use_temporal_conv moe_use_hard_gate", True),
    **_fixed("modality_detach", False),
    **_fixed("mm_vocab_size", 0),
    **_no_effect("max_text_id", "only with mm_vocab_size"),
    **_no_effect("resampler_fuse_rms_norm", "kernels for the same computation"),
}

_VISION: Keys = {
    **_ANY,
    **_used(
        "depth hidden_size intermediate_size mlp_ratio num_heads patch_size in_channels spatial_merge_size"
    ),
    **_used("embed_dim", "must equal hidden_size"),
    **_used("in_chans", "must equal in_channels"),
    **_used("spatial_patch_size", "must equal patch_size"),
    **_used(
        "rope_theta rope_parameters rope_scaling",
        "rotary embedding; only over rows and columns, with theta 10000",
    ),
    **_fixed("temporal_merge_size", 2),
    **_fixed("hidden_act", "quick_gelu"),
    **_fixed("rms_norm_eps layer_norm_eps", 1e-6),
    **_fixed("attention_dropout hidden_dropout", 0.0),
    **_no_effect(
        "attn_sep pp_data_balance recompute use_recompute vit_first_fwd_bsz vit_num_recompute_layers "
        "tensor_parallel_degree tensor_parallel_rank tensor_model_parallel_size use_flash_attention use_flash_attn "
        "use_sparse_flash_attn",
        "parallelism, memory and kernel options of Baidu's trainer",
    ),
}

ROPE_KEYS: Keys = {
    **_used("rope_theta"),
    **_used("mrope_section", "sections for height, width and time"),
    **_fixed("partial_rotary_factor factor", 1.0),
    **_no_effect("original_max_position_embeddings finetuned", "only with other rotary embeddings"),
}


def decoder_keys(family: Family) -> Keys:
    """Keys of the decoder: of the whole file where it is flat, of text_config where it is nested."""
    if family == "vl":
        return {**_DECODER, **_MOE, **_FLAT_VL}
    text = {
        **_no_effect("freq_allocation moe_use_hard_gate", "only in vision-language models"),
        **_fixed("rope_3d", False),
    }
    if family == "moe":
        return {**_DECODER, **_MOE, **text}
    no_experts = _no_effect(" ".join(_MOE), "only in models with experts") | _fixed("moe_num_experts", 0, [])
    return {**_DECODER, **no_experts, **text}


def vision_keys() -> Keys:
    """Keys of vision_config."""
    return _VISION


def outer_keys() -> Keys:
    """Top-level keys of the nested form of transformers."""
    return {**_ANY, **_used(f"text_config vision_config image_token_id video_token_id {_MEDIA_IDS}")}


def canonical(section: Mapping[str, Any], aliases: Mapping[str, str], prefix: str = "") -> dict[str, Any]:
    """A section without nulls (a null means that the key is absent), with each key under its main name.

    Raises ValueError if two names of a key have different values.
    """
    found: dict[str, Any] = {key: value for key, value in section.items() if value is not None}
    for other, name in aliases.items():
        if other not in found:
            continue
        value = found.pop(other)
        if found.setdefault(name, value) != value:
            raise ValueError(
                f"{prefix}{name} is {_shown(found[name])}, {prefix}{other} is {_shown(value)}: they are the same key"
            )
    return found


def check_keys(section: Mapping[str, Any], keys: Keys, prefix: str = "") -> list[str]:
    """Unknown keys, with `prefix`. Raises ValueError for an unsupported value."""
    for name, value in section.items():
        key = keys.get(name)
        if key is not None and key.effect == "fixed" and not _has_value(value, key.values):
            accepted = " or ".join(_shown(wanted) for wanted in key.values)
            note = f" ({key.note})" if key.note else ""
            raise ValueError(
                f"{prefix}{name} is {_shown(value)}, which is not supported: only {accepted} is{note}. If the "
                "model was not trained so, correct the file"
            )
    return [f"{prefix}{name}" for name in section if name not in keys]


def unknown_keys_message(unknown: Sequence[str], where: object) -> str | None:
    """A warning about unknown keys of a file; None without unknown keys."""
    if not unknown:
        return None
    keys = "this key is" if len(unknown) == 1 else "these keys are"
    return f"{where}: {keys} not known: {', '.join(unknown)}. Where one changes the computation, the results differ"


def _has_value(value: Any, accepted: tuple[Any, ...]) -> bool:
    # A list, such as layer_types, needs accepted elements only; [] and {} are values themselves.
    if isinstance(value, list) and value:
        return all(_has_value(inner, accepted) for inner in value)
    return any(value == wanted for wanted in accepted)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
