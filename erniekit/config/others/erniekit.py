"""The keys of Baidu's ERNIEKit 1.x: text SFT, VL-SFT and DPO, full and LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from erniekit.config import choices
from erniekit.config.others.erniekit_data import DATA_RULES
from erniekit.config.others.huggingface import HF_DEFAULTS, SCHEDULES, TRAINER_RULES
from erniekit.config.others.table import (
    LORA_PLUS_HINT,
    OFF,
    RSLORA_HINT,
    SERVING,
    Default,
    Dropped,
    Key,
    KeyTable,
    NoEquivalent,
    NotNeeded,
    Rule,
    each,
    no_equivalent,
    not_needed,
)
from erniekit.config.others.values import (
    boolean,
    checkpoint,
    choice,
    frozen_parts,
    number,
    positive,
    text,
    when_true,
    zero_stage,
)

_ARCHITECTURE = "the checkpoint's config.json describes the architecture"
_TENSOR = NotNeeded(
    "there is no tensor or pipeline parallelism; parallel.expert and parallel.shard spread the weights"
)

_FROZEN = {
    **{"freeze_vision": "vision", "freeze_vit": "vision"},
    **{"freeze_aligner": "resampler"},
    **{"freeze_lm": "language", "freeze_llm": "language"},
}


def _schedule(value: Any) -> Any:
    """A schedule by name; `wsd:STEPS` has the step where the decay begins."""
    word, _, start = str(value).strip().lower().partition(":")
    return "wsd" if word == "wsd" and (not start or start.isdigit()) else choice(SCHEDULES)(value)


_MODEL: dict[str, Rule] = {
    "stage": Key(
        "task",
        choice(
            {
                **{"sft": "sft", "vl-sft": "sft", "dpo": "dpo", "pt": "sft"},
                "ocr-vl-sft": NoEquivalent("PaddleOCR-VL models are not supported"),
            }
        ),
        essential=True,
    ),
    "model_name_or_path": Key("model.path", checkpoint),
    "fine_tuning": Key("lora.enabled", choice({"lora": True, "full": False}), role="lora"),
    "lora": Key("lora.enabled", boolean, role="lora"),
    "lora_rank": Key("lora.rank", positive, role="rank"),
    "lora_alpha": Key("lora.alpha", positive, role="alpha"),
    "rslora": Key("lora.alpha", boolean, role="rslora", hint=RSLORA_HINT),
    "lora_plus_scale": Key("optimizer.groups", number, role="lora_plus", hint=LORA_PLUS_HINT),
    "freeze_config": Key("model.freeze", frozen_parts(_FROZEN), role="freeze"),
    "compute_type": Key(
        "model.quantize",
        choice(
            {
                **{"bf16": OFF, "bfloat16": OFF},
                **{"wint8": "int8", "wint4": "int4", "wint4/8": "int4", "nf4": "int4"},
                **dict.fromkeys(("fp16", "fp8"), NoEquivalent("a GPU trains in bfloat16")),
                "fp32": NoEquivalent("set model.dtype: float32"),
            }
        ),
    ),
    "device": Key(
        "parallel.device",
        choice(
            {
                **{"gpu": OFF, "cpu": "cpu"},
                **dict.fromkeys(("xpu", "npu"), NoEquivalent("devices are GPUs and CPUs")),
            }
        ),
    ),
    **no_equivalent(
        "lora_path",
        "ERNIEKit's adapters have another layout: merge them with its own export, and set model.path to the result",
    ),
    **no_equivalent("rslora_plus", "set rslora: true, lora_alpha: 4 and lora_plus_scale: 4 in the old file"),
    **no_equivalent("num_nextn_predict_layers", "multi-token prediction is not trained"),
    **not_needed("multi_token_pred_lambda", "multi-token prediction is not trained"),
    **not_needed("tokenizer_name_or_path", "the tokenizer is read from model.path"),
    **no_equivalent(
        "download_hub",
        "repositories are of the Hugging Face Hub; download others, and set model.path to the directory",
        "huggingface",
    ),
    **not_needed(
        "multimodal use_moe rope_3d vision_config moe_gate moe_group_experts moe_use_hard_gate moe_use_aux_free "
        "moe_with_send_router_loss add_tail_layers spatial_conv_size image_token_len tie_word_embeddings",
        _ARCHITECTURE,
    ),
    **not_needed("continue_training from_scratch", "training starts from the weights in model.path"),
    **not_needed(
        "use_flash_attention use_mem_eff_attn use_flash_attn_with_mask use_attn_mask_start_row_indices "
        "use_sparse_flash_attn attn_impl fuse_linear fuse_rope fuse_softmax_mask fuse_rms_norm fuse_swiglu "
        "fuse_gate_detach_matmul moe_multimodal_dispatch_use_allgather",
        "the fastest kernels are chosen automatically (kernels.backend, kernels.attention)",
    ),
    **not_needed(
        "use_sparse_head_and_loss_fn use_fused_head_and_loss_fn use_recompute_loss_fn",
        "the output layer is always computed for trained tokens only, in chunks (loss.chunk_tokens)",
    ),
    **not_needed(
        "fp16_opt_level amp_master_grad amp_custom_white_list amp_custom_black_list scale_loss",
        "a GPU computes in bfloat16 with float32 master weights, and float32 where precision matters",
    ),
}

_TRAIN: dict[str, Rule] = {
    **TRAINER_RULES,
    "batch_size": Key("train.rows_per_step", positive, role="batch"),
    "min_lr": Key("schedule.min_learning_rate", number),
    "lr_scheduler_type": Key("schedule.type", _schedule),
    "moe_gate_lr_ratio": Key(
        "optimizer.router_learning_rate_ratio",
        number,
        comment="check: ERNIEKit's ratio reached no router of the released models; remove it to train as before",
    ),
    "moe_use_aux_free_update_coef": Key("loss.bias_update_rate", number),
    "moe_aux_loss_lambda": Key("loss.balance_weight", number),
    "moe_z_loss_lambda": Key("loss.z_weight", number),
    "moe_orthogonal_loss_lambda": Key("loss.orthogonal_weight", number),
    "use_ortho_loss_callback": Key("loss.orthogonal_mode", when_true("decoupled")),
    "token_balance_loss": Key("loss.normalization", when_true("token_balanced")),
    "loss_subbatch_seqlen": Dropped(NotNeeded("loss.chunk_tokens sets the chunks of the output layer")),
    **not_needed(
        "max_evaluate_steps eval_iters eval_accumulation_steps", "evaluation packs all samples of data.eval"
    ),
    **not_needed("lr_scheduler", "ERNIEKit uses it for VL-SFT only"),
    **not_needed(
        "unified_checkpoint unified_checkpoint_config ckpt_quant_stage disable_ckpt_quant save_to_hf "
        "save_checkpoint_format load_checkpoint_format save_sharded_model load_sharded_model "
        "save_sharding_stage1_model_include_freeze_params "
        "ignore_save_lr_and_optim ignore_load_lr_and_optim",
        "checkpoints are safetensors in the Hub's layout, in full precision, for any layout of processes",
    ),
    **no_equivalent(
        "decay_steps decay_function", "set schedule.decay_ratio, the fraction of steps of the decay"
    ),
    **no_equivalent("layerwise_lr_decay_bound", "set learning rates by name in optimizer.groups", 1),
    **no_equivalent(
        "vit_lr_ratio visual_ld",
        "set the vision tower's rate in optimizer.groups (ERNIEKit ignores it with freeze_vision)",
        1,
    ),
    **no_equivalent("adaptive_norm_clip", "set optimizer.max_grad_norm"),
    **no_equivalent(
        "hidden_dropout_prob attention_probs_dropout_prob dropout_warmup_steps",
        "only adapters have dropout (lora.dropout)",
    ),
    **no_equivalent("train_moe_only", "freeze the other parameters with patterns in model.freeze"),
    **no_equivalent(
        "offload_optim tensorwise_offload_optimizer",
        "the optimizer stays on the GPU; parallel.shard spreads it over GPUs",
    ),
}

_PARALLEL: dict[str, Rule] = {
    "tensor_parallel_degree": Dropped(_TENSOR, role="tensor", read=positive),
    "pipeline_parallel_degree": Dropped(_TENSOR, role="pipeline", read=positive),
    "tensor_model_parallel_size": Dropped(_TENSOR, role="tensor", read=positive),
    "pipeline_model_parallel_size": Dropped(_TENSOR, role="pipeline", read=positive),
    "expert_parallel_degree": Key("parallel.expert", positive, role="expert"),
    "expert_model_parallel_size": Key("parallel.expert", positive, role="expert"),
    "moe_group": Key("parallel.expert", text, role="expert_group"),
    "sharding": Key("parallel.shard", zero_stage, role="shard"),
    "sharding_parallel_degree": Dropped(
        NotNeeded("parallel.shard uses all processes"), role="shard_degree", read=positive
    ),
    "sep_parallel_degree": Key("parallel.context", positive, role="context"),
    "context_parallel_degree": Key("parallel.context", positive, role="context"),
    "recompute": Key("train.recompute", boolean, role="recompute"),
    "recompute_num_layers": Key("train.recompute", positive, role="recompute"),
    **not_needed(
        "recompute_granularity use_recompute_moe no_recompute_layers recompute_use_reentrant offload_recompute_inputs "
        "refined_recompute recompute_method",
        "train.recompute covers whole layers (layers), or no more of them than memory needs (auto)",
    ),
    **not_needed(
        "sequence_parallel use_sp_callback tensor_parallel_config tensor_parallel_output pipeline_parallel_config "
        "disable_pipeline_warmup virtual_pp_degree pp_seg_method pp_need_data pp_need_data_degree "
        "vit_second_fwd_batch_size split_param clear_every_step_cache partial_send_recv batch_p2p_comm "
        "tp_delay_scale_loss tp_sync_param sync_grad use_expert_parallel",
        _TENSOR.why,
    ),
    **not_needed(
        "sharding_parallel_config sharding_comm_buffer_size_MB", "parallel.shard has no further settings"
    ),
    **not_needed(
        "pre_alloc_memory gc_interval release_grads apply_online_actscale_step actscale_moving_rate optim_shard_num "
        "apply_hadamard use_lowprecision_moment",
        "memory is managed automatically",
    ),
}

_DPO: dict[str, Rule] = {
    "beta": Key("dpo.beta", number),
    "loss_type": Key(
        "dpo.loss",
        choice(
            {
                **{name: name for name in get_args(choices.DpoLoss)},
                "or": "orpo",
                **dict.fromkeys(
                    ("sppo_hard", "nca_pair"),
                    NoEquivalent("choose another dpo.loss, such as sigmoid or apo_zero"),
                ),
            }
        ),
    ),
    "label_smoothing": Key("dpo.label_smoothing", number),
    "simpo_gamma": Key("dpo.simpo_gamma", number),
    "dpop_lambda": Key(
        "dpo.dpop_lambda",
        number,
        comment="check: ERNIEKit adds the penalty outside the sigmoid, without dpo.beta",
    ),
    "sft_loss_ratio": Key("dpo.sft_weight", number),
    **no_equivalent("pref_loss_ratio", "the preference loss has weight 1; scale dpo.sft_weight instead", 1),
    **no_equivalent("reference_free", "choose dpo.loss simpo or orpo, which need no reference"),
    **no_equivalent("ref_model_update_steps", "the reference stays the model that training starts from", -1),
    **no_equivalent(
        "normalize_logps",
        "dpo.length_normalize divides by the answer's length, while ERNIEKit scales to the mean length of the pair: "
        "with it, multiply dpo.beta by the tokens of a typical answer",
    ),
    **no_equivalent(
        "offset_alpha", "the score difference is constant in ERNIEKit, so it has almost no effect there"
    ),
    **no_equivalent("mask_out_eos_token", "the end of an answer is part of its log-probability"),
}

_OTHER_COMMANDS = each(
    "host port metrics_port engine_worker_queue_port max_model_len max_num_seqs gpu_memory_utilization block_size "
    "kv_cache_ratio quantization use_warmup enable_mm limit_mm_per_prompt reasoning_parser tool_call_parser "
    "enable_chunked_prefill max_num_batched_tokens load_choices max_new_tokens top_p top_k temperature "
    "frequency_penalty presence_penalty repetition_penalty stream enable_thinking max_shard_size hf_hub_id",
    Dropped(SERVING),
)

_SFT_DEFAULTS = {
    **HF_DEFAULTS,
    "data.max_length": Default(4096),
    "data.on_long": Default("trim_history"),
    "train.output_dir": Default("./output"),
}

SFT = KeyTable(
    "ERNIEKit",
    _MODEL | DATA_RULES | _TRAIN | _PARALLEL | _DPO | _OTHER_COMMANDS,
    _SFT_DEFAULTS,
    {"lora": True, "epochs": 3.0, "packing": True, "mix": "weighted"},
    auto_batch=8,
    rslora_alpha=4.0,
)
PRETRAIN = replace(
    SFT,
    rules={
        **SFT.rules,
        **not_needed("train_dataset_type", "the format is detected from the keys of samples"),
    },
)
DPO = replace(SFT, defaults={**_SFT_DEFAULTS, "data.on_long": Default("drop")})
VL = replace(
    SFT,
    rules={
        **SFT.rules,
        "lr_scheduler": Key(
            "schedule.type",
            _schedule,
            comment="check: with wsd:STEPS, set schedule.decay_ratio to the fraction of the steps after STEPS",
        ),
        **not_needed(
            "lr_scheduler_type", "ERNIEKit ignores it for VL-SFT, where lr_scheduler counts (default: cosine)"
        ),
    },
    defaults={
        **_SFT_DEFAULTS,
        "schedule.type": Default("cosine"),
        "data.on_long": Default(
            "trim_history", "check: ERNIEKit removes the newest turns of such chats instead"
        ),
        "lora.targets": Default(
            [*choices.ALL_LINEAR, "*.spatial_linear.*", "*.temporal_linear.*"],
            "and the resampler, as in ERNIEKit",
        ),
    },
)
_STAGES = {"PT": PRETRAIN, "DPO": DPO, "VL-SFT": VL}


def variant(values: Mapping[str, Any]) -> KeyTable:
    """The table for the stage of a file."""
    return _STAGES.get(str(values.get("stage")).upper(), SFT)
