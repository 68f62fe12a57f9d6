"""Hints in configuration errors: the values that a key allows, and the key that was probably meant."""

import difflib
import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from erniekit.config.data import SourceConfig
from erniekit.config.schema import Schema
from erniekit.config.source import KeyPath, dotted

OTHER_NAMES = {
    "model_name_or_path": "model.path",
    "base_model": "model.path",
    "compute_type": "model.dtype",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype",
    "resize_vocab": "model.resize_vocab",
    "resize_token_embeddings_to_32x": "model.resize_vocab",
    "new_special_tokens": "model.resize_vocab",
    "freeze_config": "model.freeze",
    "freeze_vision_tower": "model.freeze",
    "fine_tuning": "lora.enabled",
    "finetuning_type": "lora.enabled",
    "use_lora": "lora.enabled",
    "lora_rank": "lora.rank",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target": "lora.targets",
    "lora_target_modules": "lora.targets",
    "target_modules": "lora.targets",
    "train_dataset_path": "data.train",
    "train_dataset": "data.train",
    "dataset": "data.train",
    "datasets": "data.train",
    "eval_dataset_path": "data.eval",
    "val_dataset": "data.eval",
    "eval_dataset": "data.eval",
    "train_dataset_type": "data.format",
    "dataset_type": "data.format",
    "chat_template": "data.template",
    "max_seq_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_seqlen": "data.max_length",
    "pad_to_max_seqlen": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "per_device_train_batch_size": "data.max_length",
    "micro_batch_size": "data.max_length",
    "batch_size": "data.max_length",
    "train_dataset_prob": "data.train",
    "interleave_probs": "data.train",
    "mix_strategy": "data.mix",
    "stopping_strategy": "data.stop",
    "buffer_size": "data.buffer",
    "shuffle_buffer_size": "data.buffer",
    "tokenized_path": "data.cache_dir",
    "dataset_prepared_path": "data.cache_dir",
    "packed_idx_cache_dir": "data.cache_dir",
    "truncation_strategy": "data.on_long",
    "mask_history": "data.loss_on",
    "train_on_last_turn": "data.loss_on",
    "render_timestamp": "data.video_timestamps",
    "video_maxlen": "data.video_max_frames",
    "video_frames_sample": "data.video_sampling",
    "random_shuffle": "data.shuffle",
    "dataloader_num_workers": "data.workers",
    "image_max_pixels": "data.max_pixels",
    "image_min_pixels": "data.min_pixels",
    "loss_type": "dpo.loss",
    "pref_loss": "dpo.loss",
    "pref_beta": "dpo.beta",
    "rpo_alpha": "dpo.sft_weight",
    "sft_loss_ratio": "dpo.sft_weight",
    "pref_ftx": "dpo.sft_weight",
    "normalize_logps": "dpo.length_normalize",
    "reference_free": "dpo.reference",
    "ref_model": "dpo.reference",
    "precompute_ref_log_probs": "dpo.reference",
    "loss_subbatch_seqlen": "loss.chunk_tokens",
    "token_balance_loss": "loss.normalization",
    "moe_aux_loss_lambda": "loss.balance_weight",
    "router_aux_loss_coef": "loss.balance_weight",
    "moe_aux_loss_coeff": "loss.balance_weight",
    "moe_z_loss_lambda": "loss.z_weight",
    "moe_z_loss_coeff": "loss.z_weight",
    "moe_orthogonal_loss_lambda": "loss.orthogonal_weight",
    "use_ortho_loss_callback": "loss.orthogonal_mode",
    "moe_use_aux_free_update_coef": "loss.bias_update_rate",
    "moe_router_bias_update_rate": "loss.bias_update_rate",
    "moe_gate_lr_ratio": "optimizer.router_learning_rate_ratio",
    "lr": "optimizer.learning_rate",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_epsilon": "optimizer.epsilon",
    "clip_grad": "optimizer.max_grad_norm",
    "lr_scheduler": "schedule.type",
    "lr_scheduler_type": "schedule.type",
    "min_lr": "schedule.min_learning_rate",
    "output_dir": "train.output_dir",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "gradient_accumulation_steps": "train.rows_per_step",
    "gradient_checkpointing": "train.recompute",
    "recompute_granularity": "train.recompute",
    "full_determinism": "train.deterministic",
    "deterministic_mode": "train.deterministic",
    "eval_steps": "train.eval_every",
    "metric_for_best_model": "eval.best_metric",
    "load_best_model_at_end": "eval.best_metric",
    "early_stopping": "eval.patience",
    "early_stopping_patience": "eval.patience",
    "early_stopping_steps": "eval.patience",
    "early_stopping_threshold": "eval.min_delta",
    "predict_with_generate": "eval.samples",
    "generation_max_length": "eval.max_new_tokens",
    "per_device_eval_batch_size": "eval.batch",
    "use_cpu": "parallel.device",
    "use_liger_kernel": "kernels.backend",
    "fuse_rms_norm": "kernels.backend",
    "fuse_rope": "kernels.backend",
    "fuse_swiglu": "kernels.backend",
    "save_steps": "checkpoint.save_every",
    "save_total_limit": "checkpoint.keep",
    "logging_steps": "log.every",
    "report_to": "log.tensorboard",
}
"""Keys of ERNIEKit and other trainers, and our key for the same setting."""


class Target(NamedTuple):
    """The schema at a key path: annotation, constraints and description."""

    annotation: Any
    constraints: tuple[Any, ...] = ()
    description: str = ""


def _sections() -> dict[str, type[BaseModel]]:
    annotations = {name: field.annotation for name, field in Schema.model_fields.items()}
    return {
        name: annotation
        for name, annotation in annotations.items()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel)
    }


def _known_keys() -> dict[str, FieldInfo]:
    return {
        f"{section}.{name}": field
        for section, model in _sections().items()
        for name, field in model.model_fields.items()
    }


SECTIONS = tuple(_sections())
"""The names of the sections: all top-level keys except `task`."""

KNOWN_KEYS = _known_keys()
"""Every `section.key` of the schema, with its field."""


def _flatten(metadata: Iterator[Any] | tuple[Any, ...] | list[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flatten(item.metadata)
        else:
            yield item


def _unwrap(annotation: Any, constraints: tuple[Any, ...] = ()) -> tuple[Any, tuple[Any, ...], bool]:
    """The type without Annotated and None, its constraints, and whether null is allowed."""
    nullable = False
    while True:
        if get_origin(annotation) is Annotated:
            constraints += tuple(_flatten(annotation.__metadata__))
            annotation = annotation.__origin__
        elif get_origin(annotation) in (Union, types.UnionType):
            nullable = True
            (annotation,) = (member for member in get_args(annotation) if member is not type(None))
        else:
            return annotation, constraints, nullable


def target_of(path: KeyPath) -> Target | None:
    """The schema at a key path; None where the path leads nowhere."""
    target = Target(Schema)
    for part in path:
        kind, _, _ = _unwrap(target.annotation)
        if isinstance(part, int):
            if get_origin(kind) is not list:
                return None
            target = Target(get_args(kind)[0])
        elif isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
            found = kind.model_fields[part]
            target = Target(found.annotation, tuple(_flatten(found.metadata)), found.description or "")
        else:
            return None
    return target


def allowed(target: Target) -> str:
    """The allowed values in words: "a whole number above 0 or null"."""
    kind, constraints, nullable = _unwrap(target.annotation, target.constraints)
    return _allowed_type(kind, constraints) + (" or null" if nullable else "")


def _allowed_type(kind: Any, constraints: tuple[Any, ...]) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is list:
        item, _, _ = _unwrap(get_args(kind)[0])
        is_source = isinstance(item, type) and issubclass(item, SourceConfig)
        what = (
            "strings" if item is str or get_origin(item) is Literal else "paths" if is_source else "sections"
        )
        return f"a {_non_empty(constraints)}list of {what}"
    if kind is bool:
        return "true or false"
    if kind is str:
        return f"a {_non_empty(constraints)}string"
    if kind in (int, float):
        bounds = " and ".join(_bounds(constraints))
        return ("a whole number" if kind is int else "a number") + (f" {bounds}" if bounds else "")
    if kind is SourceConfig:
        return "a path, or a section with `path`"
    return "a section with keys"


def _non_empty(constraints: tuple[Any, ...]) -> str:
    return "non-empty " if any(isinstance(constraint, MinLen) for constraint in constraints) else ""


def _bounds(constraints: tuple[Any, ...]) -> Iterator[str]:
    for bound in constraints:
        if isinstance(bound, Gt):
            yield f"above {bound.gt}"
        elif isinstance(bound, Ge):
            yield f"of at least {bound.ge}"
        elif isinstance(bound, Lt):
            yield f"below {bound.lt}"
        elif isinstance(bound, Le):
            yield f"of at most {bound.le}"


def shown(value: Any) -> str:
    """A value as YAML on one line, shortened to 60 characters."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest_choice(target: Target, value: Any) -> str | None:
    """The choice most similar to `value`; None for a key without choices."""
    kind, _, _ = _unwrap(target.annotation)
    if get_origin(kind) is not Literal:
        return None
    return _closest(str(value).lower(), list(get_args(kind)))


def meant(path: KeyPath) -> str:
    """For an unknown key: "did you mean ...?", or the keys that are allowed there."""
    last = str(path[-1])
    parent = target_of(path[:-1])
    kind = None if parent is None else _unwrap(parent.annotation)[0]
    siblings = list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []
    near = _closest(last, siblings)
    beside = None if near is None else dotted((*path[:-1], near))
    if len(path) <= 2:
        if last in OTHER_NAMES:
            key = OTHER_NAMES[last]
            return f"did you mean `{key}`? {KNOWN_KEYS[key].description}"
        by_name = {key.split(".")[1]: key for key in KNOWN_KEYS}
        joined = {key.replace(".", "_"): key for key in KNOWN_KEYS}
        elsewhere = by_name.get(last) or joined.get(_closest(last, list(joined)) or "")
        elsewhere = elsewhere or by_name.get(_closest(last, list(by_name)) or "")
        beside = last if last in Schema.model_fields else by_name.get(last) or beside or elsewhere
    return f"did you mean `{beside}`?" if beside else "allowed here: " + ", ".join(siblings)


def _closest(word: str, words: list[str]) -> str | None:
    matches = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    return matches[0] if matches else None
