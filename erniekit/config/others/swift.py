"""The common keys of ms-swift 3 and 4: SFT, pre-training and preferences, full and LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from erniekit.config.others.huggingface import BITS, DTYPES, TRAINER_RULES
from erniekit.config.others.table import (
    LORA_PLUS_HINT,
    OFF,
    RSLORA_HINT,
    Default,
    Dropped,
    Key,
    KeyTable,
    NoEquivalent,
    NotNeeded,
    Rule,
    no_equivalent,
    not_needed,
)
from erniekit.config.others.values import (
    boolean,
    checkpoint,
    choice,
    number,
    numbers,
    path,
    positive,
    sources,
    targets,
    text,
    when_true,
    whole,
    zero_stage,
)

_TUNERS = choice(
    {
        **{"lora": True, "full": False},
        **dict.fromkeys(
            ("longlora", "adalora", "llamapro", "adapter", "vera", "boft", "fourierft", "reft", "bone"),
            NoEquivalent("adapters are LoRA; choose lora.enabled, or full fine-tuning"),
        ),
    }
)


_RULES: dict[str, Rule] = {
    "model": Key("model.path", checkpoint),
    "rlhf_type": Key(
        "dpo.loss",
        choice(
            {
                **{"dpo": OFF, "orpo": "orpo", "simpo": "simpo"},
                **dict.fromkeys(
                    ("kto", "cpo", "rm", "ppo", "grpo", "gkd"),
                    NoEquivalent("training is supervised or on preference pairs (task: sft or dpo)"),
                ),
            }
        ),
        essential=True,
    ),
    "task_type": Key(
        "task",
        choice(
            {
                "causal_lm": OFF,
                **dict.fromkeys(
                    ("seq_cls", "embedding", "reranker", "generative_reranker"),
                    NoEquivalent("models generate text"),
                ),
            }
        ),
        essential=True,
    ),
    "train_type": Key("lora.enabled", _TUNERS, role="lora"),
    "tuner_type": Key("lora.enabled", _TUNERS, role="lora"),
    "lora_rank": Key("lora.rank", positive, role="rank"),
    "lora_alpha": Key("lora.alpha", positive, role="alpha"),
    "lora_dropout": Key("lora.dropout", number),
    "target_modules": Key("lora.targets", targets),
    "use_rslora": Key("lora.alpha", boolean, role="rslora", hint=RSLORA_HINT),
    "lorap_lr_ratio": Key("optimizer.groups", number, role="lora_plus", hint=LORA_PLUS_HINT),
    "freeze_vit": Key("model.freeze", boolean, role="freeze_vision"),
    "freeze_aligner": Key("model.freeze", boolean, role="freeze_resampler"),
    "freeze_llm": Key("model.freeze", boolean, role="freeze_language"),
    "model_revision": Key("model.revision", text),
    "torch_dtype": Key("model.dtype", choice(DTYPES)),
    "dataset": Key("data.train", sources, role="paths"),
    "val_dataset": Key("data.eval", sources, role="eval_paths"),
    "interleave_prob": Key("data.train", numbers, role="weights"),
    "stopping_strategy": Key(
        "data.stop",
        choice({name: name for name in ("first_exhausted", "all_exhausted")}),
        role="mix",
    ),
    **no_equivalent("columns", "give the source in data.train its columns: {OUR_KEY: NAME_IN_DATA}", {}),
    "max_length": Key("data.max_length", whole),
    "truncation_strategy": Key(
        "data.on_long",
        choice(
            {
                **{"delete": "drop", "left": "trim_history"},
                **dict.fromkeys(
                    ("right", "split"),
                    NoEquivalent("answers are never cut; data.on_long removes old exchanges, or the sample"),
                ),
            }
        ),
    ),
    "loss_scale": Key(
        "data.loss_on",
        choice(
            {
                **dict.fromkeys(("default", "ignore_empty_think"), OFF),
                **dict.fromkeys(("last_round", "last_round_with_ignore_empty_think"), "last_turn"),
                "all": NoEquivalent("only answers are trained; format text trains whole texts"),
            }
        ),
    ),
    "dataset_shuffle": Key("data.shuffle", boolean),
    "streaming": Key("data.streaming", boolean),
    "shuffle_buffer_size": Key("data.buffer", positive),
    "max_pixels": Key("data.max_pixels", positive),
    "strict": Key("data.on_error", when_true("raise", "skip")),
    "sequence_parallel_size": Key("parallel.context", positive, role="context"),
    "deepspeed": Key("parallel.shard", zero_stage, role="shard"),
    "beta": Key("dpo.beta", number),
    "rpo_alpha": Key("dpo.sft_weight", number),
    "cpo_alpha": Key("dpo.sft_weight", number),
    "label_smoothing": Key("dpo.label_smoothing", number),
    "simpo_gamma": Key("dpo.simpo_gamma", number),
    "loss_type": Key(
        "dpo.loss",
        choice({name: name for name in ("sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down")}),
    ),
    "predict_with_generate": Key("eval.samples", when_true(50)),
    "early_stop_interval": Key("eval.patience", positive),
    "packing": Dropped(NotNeeded("documents are always packed"), role="packing", read=boolean),
    **not_needed(
        "padding_free packing_length packing_num_proc",
        "documents are always packed, to data.max_length tokens",
    ),
    **not_needed(
        "template enable_thinking agent_template template_backend use_chat_template system norm_bbox padding_side "
        "response_prefix",
        "the model's chat template applies (data.template); samples have their own system message",
    ),
    **not_needed("attn_impl tuner_backend", "the fastest kernels are chosen automatically"),
    **not_needed("model_type use_hf", "model.path names the checkpoint, on the Hugging Face Hub or on disk"),
    **not_needed(
        "dataset_num_proc load_from_cache_file lazy_tokenize", "data.workers processes encode samples, once"
    ),
    **not_needed("data_seed", "train.seed is the seed of the data order too"),
    **not_needed(
        "train_dataloader_shuffle val_dataset_shuffle", "data.shuffle is for training; evaluation is in order"
    ),
    **not_needed(
        "add_version create_checkpoint_symlink check_model load_args ignore_args_error",
        "a run has one directory",
    ),
    **not_needed("model_author model_name", "only for a data set of ms-swift"),
    **not_needed(
        "vit_gradient_checkpointing use_logits_to_keep acc_strategy",
        "train.recompute covers the vision tower",
    ),
    **not_needed(
        "eval_limit max_new_tokens temperature",
        "eval.samples, eval.max_new_tokens and eval.temperature set them",
    ),
    **no_equivalent("split_dataset_ratio", "split the file, and name the part in data.eval"),
    "adapters": Key("lora.path", path),
    **no_equivalent("ref_adapters", "the reference is the model with its adapters disabled"),
    **no_equivalent(
        "use_dora init_weights modules_to_save target_regex target_parameters", "name modules in lora.targets"
    ),
    **no_equivalent("vit_lr aligner_lr", "set the rate by parameter name in optimizer.groups"),
    **no_equivalent(
        "freeze_parameters freeze_parameters_regex freeze_parameters_ratio trainable_parameters",
        "name parameters with patterns in model.freeze",
    ),
    "quant_bits": Key("model.quantize", choice(BITS)),
    **not_needed(
        "quant_method bnb_4bit_compute_dtype bnb_4bit_quant_type bnb_4bit_use_double_quant",
        "model.quantize has one method for each width",
    ),
    **no_equivalent(
        "new_special_tokens", "add the tokens to the tokenizer, and set model.resize_vocab: true"
    ),
    **no_equivalent("max_model_len rope_scaling", "model.max_position_embeddings trains longer positions"),
    **no_equivalent(
        "cached_dataset custom_register_path external_plugins custom_dataset_info",
        "name data files in data.train",
    ),
    **no_equivalent("ref_model", "the reference is the model that training starts from (dpo.reference)"),
    **no_equivalent("ld_alpha loss_weights", "one dpo.loss at a time, with weight 1"),
    **no_equivalent("enable_dft_loss enable_channel_loss", "the loss is cross entropy, reported by source"),
    **no_equivalent("use_galore lisa_activated_layers optimizer", "the optimizer is AdamW"),
}

SWIFT = KeyTable(
    "ms-swift",
    TRAINER_RULES | _RULES,
    {
        "optimizer.learning_rate": Default(1e-4, lora=True),
        "checkpoint.save_every": Default(500),
        "lora.alpha": Default(32.0),
        "lora.dropout": Default(0.05),
        "data.on_long": Default("drop"),
        "train.recompute": Default("layers"),
        "log.every": Default(5),
        "train.output_dir": Default("output"),
    },
    {
        **{"lora": True, "epochs": 3.0, "accumulation": -1, "packing": False},
        **{"freeze_vision": True, "freeze_resampler": True},
    },
    auto_batch=16,
    sample_counts=True,
)
PREFERENCES = replace(
    SWIFT,
    defaults={
        **SWIFT.defaults,
        "task": Default("dpo", "rlhf_type"),
        "data.loss_on": Default("last_turn"),
    },
)
SIMPO = replace(
    PREFERENCES,
    defaults={**PREFERENCES.defaults, "dpo.simpo_gamma": Default(1.0), "dpo.sft_weight": Default(1.0)},
)


def variant(values: Mapping[str, Any]) -> KeyTable:
    """The table for the method of a file."""
    if "rlhf_type" not in values:
        return SWIFT
    return SIMPO if values["rlhf_type"] == "simpo" else PREFERENCES
