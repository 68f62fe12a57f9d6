"""The common keys of LLaMA-Factory: SFT, pre-training and preferences, full and LoRA."""

from __future__ import annotations

from erniekit.config.others.huggingface import BITS, HF_DEFAULTS, TRAINER_RULES
from erniekit.config.others.table import (
    LORA_PLUS_HINT,
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
    number,
    numbers,
    path,
    positive,
    targets,
    text,
    when_true,
    whole,
    words,
)

_ADAPTERS = "adapters are LoRA; choose lora.enabled, or full fine-tuning"
_OPTIMIZER = "the optimizer is AdamW"

_MODEL: dict[str, Rule] = {
    "stage": Key(
        "task",
        choice(
            {
                **{"sft": "sft", "pt": "sft", "dpo": "dpo"},
                **dict.fromkeys(
                    ("rm", "ppo", "kto"), NoEquivalent("task is sft or dpo; prepare preference pairs")
                ),
            }
        ),
        essential=True,
    ),
    "model_name_or_path": Key("model.path", checkpoint),
    "finetuning_type": Key(
        "lora.enabled",
        choice({"lora": True, "full": False, **dict.fromkeys(("freeze", "oft"), NoEquivalent(_ADAPTERS))}),
        role="lora",
    ),
    "lora_rank": Key("lora.rank", positive, role="rank"),
    "lora_alpha": Key("lora.alpha", positive, role="alpha"),
    "lora_dropout": Key("lora.dropout", number),
    "adapter_name_or_path": Key("lora.path", path),
    "lora_target": Key("lora.targets", targets),
    "use_rslora": Key("lora.alpha", boolean, role="rslora", hint=RSLORA_HINT),
    "loraplus_lr_ratio": Key("optimizer.groups", number, role="lora_plus", hint=LORA_PLUS_HINT),
    "freeze_vision_tower": Key("model.freeze", boolean, role="freeze_vision"),
    "freeze_multi_modal_projector": Key("model.freeze", boolean, role="freeze_resampler"),
    "freeze_language_model": Key("model.freeze", boolean, role="freeze_language"),
    "resize_vocab": Key("model.resize_vocab", boolean),
    "model_revision": Key("model.revision", text),
    "quantization_bit": Key("model.quantize", choice(BITS)),
    "infer_dtype": Dropped(NotNeeded("model.dtype: auto is bfloat16 on a GPU")),
    **{
        f"{kind}_{end}_pixels": Key(f"data.{name}{end}_pixels", positive)
        for kind, name in (("image", ""), ("video", "video_"))
        for end in ("min", "max")
    },
    "video_fps": Key("data.video_fps", number),
    "video_maxlen": Key("data.video_max_frames", positive),
    **not_needed("trust_remote_code", "no code of a checkpoint is executed"),
    **not_needed(
        "flash_attn enable_liger_kernel use_unsloth shift_attn",
        "the fastest kernels are chosen automatically",
    ),
    **not_needed(
        "quantization_method double_quantization quantization_type",
        "model.quantize has one method for each width",
    ),
    **not_needed("cache_dir use_fast_tokenizer low_cpu_mem_usage", "model.path names the checkpoint"),
    **not_needed("disable_gradient_checkpointing", "train.recompute: none is the default"),
    **not_needed("upcast_layernorm upcast_lmhead_output", "norm statistics and losses are float32"),
    **no_equivalent("use_dora pissa_init create_new_adapter oft_rank", _ADAPTERS),
    **no_equivalent(
        "additional_target", "only adapters are trained; model.resize_vocab trains embeddings as well"
    ),
    **no_equivalent(
        "new_special_tokens add_tokens", "add the tokens to the tokenizer, and set model.resize_vocab: true"
    ),
    **no_equivalent("rope_scaling", "model.max_position_embeddings trains longer positions, without scaling"),
    **no_equivalent(
        "use_galore use_apollo use_badam use_adam_mini use_muon use_llama_pro use_dft_loss", _OPTIMIZER
    ),
}

_DATA: dict[str, Rule] = {
    "dataset": Key("data.train", words, role="datasets"),
    "eval_dataset": Key("data.eval", words, role="eval_datasets"),
    "dataset_dir": Key("data.train", text, role="dataset_dir"),
    "interleave_probs": Key("data.train", numbers, role="weights"),
    "mix_strategy": Key(
        "data.mix",
        choice(
            {"concat": "concat", "interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}
        ),
        role="mix",
    ),
    "cutoff_len": Key("data.max_length", whole),
    "streaming": Key("data.streaming", boolean),
    "buffer_size": Key("data.buffer", positive),
    "mask_history": Key("data.loss_on", when_true("last_turn")),
    "disable_shuffling": Key("data.shuffle", when_true(False)),
    "tokenized_path": Dropped(NotNeeded("encoded samples are cached (data.cache, data.cache_dir)")),
    "packing": Dropped(NotNeeded("documents are always packed"), role="packing", read=boolean),
    "neat_packing": Dropped(
        NotNeeded("packed documents do not attend to each other"), role="packing", read=boolean
    ),
    **not_needed(
        "template tool_format default_system enable_thinking",
        "the model's chat template applies (data.template)",
    ),
    **not_needed("media_dir", "paths of images and videos start at the directory of the data file"),
    **not_needed("preprocessing_num_workers", "data.workers processes encode samples"),
    **not_needed(
        "overwrite_cache preprocessing_batch_size ignore_pad_token_for_loss data_shared_file_system",
        "encoded samples are cached, and encoded again when a file or setting changes",
    ),
    **no_equivalent("val_size", "split the file, and name the part in data.eval"),
    **no_equivalent("max_samples", "set train.max_steps, or make a smaller file"),
    **no_equivalent("train_on_prompt", "only answers are trained; format text trains whole texts"),
    **no_equivalent("eval_on_each_dataset", "`erniekit eval` reports the loss by source"),
}

_REST: dict[str, Rule] = {
    "pref_beta": Key("dpo.beta", number),
    "pref_loss": Key(
        "dpo.loss", choice({name: name for name in ("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo")})
    ),
    "pref_ftx": Key("dpo.sft_weight", number),
    "dpo_label_smoothing": Key("dpo.label_smoothing", number),
    "simpo_gamma": Key("dpo.simpo_gamma", number),
    "predict_with_generate": Key("eval.samples", when_true(50)),
    "early_stopping_steps": Key("eval.patience", positive),
    **not_needed("plot_loss", "report.html in the run's directory has the curves (log.report)"),
    **not_needed(
        "include_effective_tokens_per_second include_tokens_per_second compute_accuracy",
        "the log has tokens/s and MFU",
    ),
    **no_equivalent("ref_model", "the reference is the model that training starts from (dpo.reference)"),
    **no_equivalent("pref_bco_weight ld_alpha", "choose another dpo.loss"),
    **each(
        "export_dir export_size export_device export_legacy_format export_hub_model_id infer_backend max_new_tokens "
        "temperature top_p top_k do_sample",
        Dropped(SERVING),
    ),
    **no_equivalent("use_swanlab swanlab_project", "set log.swanlab to the name of the project, or to true"),
}

LLAMAFACTORY = KeyTable(
    "LLaMA-Factory",
    TRAINER_RULES | _MODEL | _DATA | _REST,
    {
        **HF_DEFAULTS,
        "data.max_length": Default(2048),
        "data.on_long": Default(
            "trim_history", "check: LLaMA-Factory cuts long samples at cutoff_len tokens"
        ),
        "train.recompute": Default("layers"),
        "train.output_dir": Default("saves"),
    },
    {
        **{"lora": True, "epochs": 3.0, "batch": 8, "packing": False, "dataset_dir": "data"},
        **{"freeze_vision": True, "freeze_resampler": True},
    },
)
