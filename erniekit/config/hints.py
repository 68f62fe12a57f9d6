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
from erniekit.config.logging import TrackerConfig
from erniekit.config.others.recognize import rule_of
from erniekit.config.others.table import Dropped, NotNeeded
from erniekit.config.schema import Schema
from erniekit.config.source import KeyPath, dotted

OTHER_NAMES = {
    "base_model": "model.path",
    "resize_token_embeddings_to_32x": "model.resize_vocab",
    "use_lora": "lora.enabled",
    "lora_r": "lora.rank",
    "lora_target_modules": "lora.targets",
    "train_dataset": "data.train",
    "datasets": "data.train",
    "max_seq_length": "data.max_length",
    "max_seqlen": "data.max_length",
    "sequence_len": "data.max_length",
    "micro_batch_size": "data.max_length",
    "global_batch_size": "train.rows_per_step",
    "train_batch_size": "train.rows_per_step",
    "total_batch_size": "train.tokens_per_step",
    "dataset_prepared_path": "data.cache_dir",
    "train_on_last_turn": "data.loss_on",
    "precompute_ref_log_probs": "dpo.reference",
    "moe_aux_loss_coeff": "loss.balance_weight",
    "moe_z_loss_coeff": "loss.z_weight",
    "moe_router_bias_update_rate": "loss.bias_update_rate",
    "lr": "optimizer.learning_rate",
    "clip_grad": "optimizer.max_grad_norm",
    "num_epochs": "train.epochs",
    "deterministic_mode": "train.deterministic",
    "early_stopping": "eval.patience",
    "early_stopping_patience": "eval.patience",
    "early_stopping_threshold": "eval.min_delta",
    "generation_max_length": "eval.max_new_tokens",
}
"""Keys of trainers without a table in `erniekit.config.others` (TRL, Axolotl, Megatron), and our key."""


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
    """The schema at a key path; None if there is no such path."""
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
    if isinstance(kind, type) and issubclass(kind, TrackerConfig):
        return "true, false, a project, or a section with keys"
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
        by_name = {key.split(".")[1]: key for key in KNOWN_KEYS}
        if last not in by_name and (other := _of_another_trainer(last)) is not None:
            return other
        joined = {key.replace(".", "_"): key for key in KNOWN_KEYS}
        elsewhere = by_name.get(last) or joined.get(_closest(last, list(joined)) or "")
        elsewhere = elsewhere or by_name.get(_closest(last, list(by_name)) or "")
        beside = last if last in Schema.model_fields else by_name.get(last) or beside or elsewhere
    return f"did you mean `{beside}`?" if beside else "allowed here: " + ", ".join(siblings)


def _of_another_trainer(name: str) -> str | None:
    """For a key of another trainer: our key for it, why there is none, or what to do instead."""
    rule = rule_of(name)
    if isinstance(rule, Dropped):
        outcome = rule.outcome
        if isinstance(outcome, NotNeeded):
            return f"it is not needed here: {outcome.why}"
        return f"it has no equivalent here: {outcome.advice}"
    key = OTHER_NAMES.get(name) if rule is None else rule.name
    if key is None:
        return None
    description = (
        Schema.model_fields[key].description if key in Schema.model_fields else KNOWN_KEYS[key].description
    )
    return f"did you mean `{key}`? {(rule and rule.hint) or description}"


def _closest(word: str, words: list[str]) -> str | None:
    matches = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    return matches[0] if matches else None
