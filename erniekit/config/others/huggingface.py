"""The keys of transformers' TrainingArguments, which several trainers share."""

from __future__ import annotations

from typing import Any

from erniekit.config.others.table import (
    OFF,
    Default,
    Key,
    NoEquivalent,
    Rule,
    no_equivalent,
    not_needed,
)
from erniekit.config.others.values import (
    boolean,
    choice,
    number,
    path,
    positive,
    text,
    when_true,
    whole,
    words,
    zero_stage,
)

SCHEDULES: dict[str, Any] = {
    **{name: name for name in ("cosine", "linear", "constant")},
    **{"constant_with_warmup": "constant", "cosine_with_min_lr": "cosine", "warmup_stable_decay": "wsd"},
    **dict.fromkeys(
        ("polynomial", "cosine_with_restarts", "inverse_sqrt"), NoEquivalent("choose another schedule.type")
    ),
}
"""Names of transformers' schedules."""

DTYPES: dict[str, Any] = {
    **{"bfloat16": OFF, "auto": OFF, "float32": "float32"},
    "float16": NoEquivalent("a GPU trains in bfloat16, which needs no loss scaling"),
}


BITS = {"8": "int8", "4": "int4"}
"""Widths of a quantized base."""


def _minimum_rate(value: Any) -> Any:
    """min_lr among a schedule's further arguments, a mapping."""
    if not isinstance(value, dict) or set(value) - {"min_lr"}:
        return NoEquivalent("set schedule.min_learning_rate or schedule.decay_ratio")
    return number(value["min_lr"]) if value else OFF


def _report_to(value: Any) -> Any:
    """Where metrics go: a name or a list of names."""
    names = set(words(value))
    services = [name for name in ("wandb", "swanlab") if name in names]
    if services:
        return NoEquivalent(f"set {' and '.join(f'log.{name}: true' for name in services)}")
    if names & {"mlflow", "trackio"}:
        return NoEquivalent(
            "a run writes TensorBoard files and JSON lines; log.wandb and log.swanlab are services"
        )
    return OFF if names - {"none"} else False


TRAINER_RULES: dict[str, Rule] = {
    "output_dir": Key("train.output_dir", path),
    "seed": Key("train.seed", whole),
    "max_steps": Key("train.max_steps", positive, role="max_steps"),
    "num_train_epochs": Key("train.epochs", number, role="epochs"),
    "per_device_train_batch_size": Key("train.rows_per_step", positive, role="batch"),
    "gradient_accumulation_steps": Key("train.rows_per_step", whole, role="accumulation"),
    "learning_rate": Key("optimizer.learning_rate", number),
    "weight_decay": Key("optimizer.weight_decay", number),
    "adam_beta1": Key("optimizer.beta1", number),
    "adam_beta2": Key("optimizer.beta2", number),
    "adam_epsilon": Key("optimizer.epsilon", number),
    "max_grad_norm": Key("optimizer.max_grad_norm", number),
    **no_equivalent(
        "optim", "the optimizer is AdamW", "adamw", "adamw_torch", "adamw_torch_fused", "adamw_custom"
    ),
    "lr_scheduler_type": Key("schedule.type", choice(SCHEDULES)),
    "lr_scheduler_kwargs": Key("schedule.min_learning_rate", _minimum_rate),
    "warmup_steps": Key("schedule.warmup_steps", whole),
    "warmup_ratio": Key("schedule.warmup_ratio", number),
    "gradient_checkpointing": Key("train.recompute", boolean, role="recompute"),
    "full_determinism": Key("train.deterministic", boolean),
    "deepspeed": Key("parallel.shard", zero_stage, role="shard"),
    "dataloader_num_workers": Key("data.workers", whole),
    "logging_steps": Key("log.every", positive),
    "save_steps": Key("checkpoint.save_every", positive, role="save_steps"),
    "save_strategy": Key("checkpoint.save_every", text, role="save_strategy"),
    "save_total_limit": Key("checkpoint.keep", positive),
    "eval_steps": Key("train.eval_every", positive, role="eval_steps"),
    "eval_strategy": Key("train.eval_every", text, role="eval_strategy"),
    "evaluation_strategy": Key("train.eval_every", text, role="eval_strategy"),
    "load_best_model_at_end": Key("eval.best_metric", when_true("eval/loss")),
    "report_to": Key("log.tensorboard", _report_to),
    "router_aux_loss_coef": Key("loss.balance_weight", number),
    "use_cpu": Key("parallel.device", when_true("cpu")),
    **not_needed(
        "do_train do_eval do_predict", "`erniekit train` trains, and evaluates if data.eval has samples"
    ),
    **not_needed("bf16 fp16 pure_bf16 tf32", "a GPU computes in bfloat16 with float32 master weights"),
    **not_needed("per_device_eval_batch_size", "evaluation packs all samples of data.eval"),
    **not_needed(
        "overwrite_output_dir", "a new run never overwrites checkpoints; use a new train.output_dir"
    ),
    **not_needed(
        "resume_from_checkpoint ignore_data_skip", "`erniekit train run.yaml --resume` continues a run"
    ),
    **not_needed(
        "save_only_model save_safetensors", "checkpoints are safetensors, with all that a run needs to resume"
    ),
    **not_needed("logging_dir run_name disable_tqdm logging_first_step", "logs are in train.output_dir"),
    **not_needed(
        "ddp_timeout ddp_backend ddp_find_unused_parameters", "parallel.timeout is the limit for a process"
    ),
    **not_needed(
        "remove_unused_columns dataloader_drop_last dataloader_pin_memory dataloader_prefetch_factor "
        "dataloader_persistent_workers group_by_length average_tokens_across_devices include_num_input_tokens_seen",
        "documents are packed, and the loss is the mean over all trained tokens of a step",
    ),
    **not_needed(
        "use_liger_kernel gradient_checkpointing_kwargs", "the fastest kernels are chosen automatically"
    ),
    **no_equivalent("metric_for_best_model greater_is_better", "set eval.best_metric"),
    **no_equivalent(
        "fsdp fsdp_config", "set parallel.shard: parameters, which shards weights, gradients and optimizer"
    ),
    **no_equivalent("neftune_noise_alpha", "no noise is added to embeddings"),
    **no_equivalent(
        "label_smoothing_factor", "only preference losses have label smoothing (dpo.label_smoothing)"
    ),
    **no_equivalent(
        "push_to_hub hub_model_id", "`erniekit export` writes a directory that huggingface_hub can upload"
    ),
}
"""Keys of transformers' TrainingArguments, which several trainers share."""

HF_DEFAULTS = {
    "optimizer.learning_rate": Default(5e-5),
    "optimizer.weight_decay": Default(0.0),
    "optimizer.beta2": Default(0.999),
    "schedule.type": Default("linear"),
    "checkpoint.save_every": Default(500),
    "log.every": Default(500),
}
"""Defaults of transformers' TrainingArguments that are others than ours."""
