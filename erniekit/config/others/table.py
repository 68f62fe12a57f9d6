"""A table of another trainer's keys: each one has a key here, is not needed here, or has no equivalent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NotNeeded:
    """A key without a use here. why: one sentence without a full stop."""

    why: str


@dataclass(frozen=True)
class NoEquivalent:
    """A setting that does not exist here. advice: what to do instead, one sentence without a full stop."""

    advice: str


class Off:
    """The result of reading a value that disables its setting, which is the default here."""


OFF = Off()

SERVING = NotNeeded("`erniekit eval`, `serve`, `chat` and `export` take options, not a file")
"""The outcome of keys for other commands than training."""


class UnreadableError(Exception):
    """A value of the wrong type or outside the known choices. The message continues "KEY: ...", such as "must be"."""


Reader = Callable[[Any], Any]
"""Converts a value of another trainer to the value here, OFF, NotNeeded or NoEquivalent; raises UnreadableError."""


@dataclass(frozen=True)
class Key:
    """A key with an equivalent here.

    name: our key, section.key; read: converts the value. role: set if a setting depends on several old keys;
    `erniekit.config.convert.combine` reads it by this name. comment: for the line of the written setting. hint: what an
    error says about the key, if the description of our key is not enough. essential: without an equivalent of
    its value, there is nothing to convert.
    """

    name: str
    read: Reader
    role: str = ""
    comment: str = ""
    hint: str = ""
    essential: bool = False


@dataclass(frozen=True)
class Dropped:
    """A key without an equivalent here. outcome: the reason, or what to do.

    off: values that disable it in the other trainer, and are not reported. role: as in Key, for a key that other
    settings depend on; then `read` converts its value.
    """

    outcome: NotNeeded | NoEquivalent
    off: tuple[Any, ...] = ()
    role: str = ""
    read: Reader | None = None


Rule = Key | Dropped

RSLORA_HINT = "rsLoRA scales by alpha / sqrt(rank): set lora.alpha to alpha * sqrt(rank)."
LORA_PLUS_HINT = "LoRA+ is a group with match: '*.lora_B.*' and the ratio as learning_rate_ratio."


@dataclass(frozen=True)
class Default:
    """A setting to write because the other trainer's default differs. comment: for its line; lora: only with LoRA."""

    value: Any
    comment: str = ""
    lora: bool = False


@dataclass(frozen=True)
class KeyTable:
    """A trainer and the keys of its configuration files, flat.

    name: for messages. rules: by old key. defaults: by our key, if the other trainer's default differs.
    roles: values of roles that the file does not set. auto_batch: rows per step if the file leaves accumulation to
    the trainer; rslora_alpha: alpha with rsLoRA if the file has none (None: twice the rank). sample_counts: a
    path may end with #COUNT, a number of samples.
    """

    name: str
    rules: Mapping[str, Rule]
    defaults: Mapping[str, Default] = field(default_factory=dict)
    roles: Mapping[str, Any] = field(default_factory=dict)
    auto_batch: int = 1
    rslora_alpha: float | None = None
    sample_counts: bool = False


def each(keys: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for several keys, separated by spaces."""
    return dict.fromkeys(keys.split(), rule)


def not_needed(keys: str, why: str) -> dict[str, Rule]:
    """Keys, separated by spaces, that are not needed here for one reason."""
    return each(keys, Dropped(NotNeeded(why)))


def no_equivalent(keys: str, advice: str, *off: Any) -> dict[str, Rule]:
    """Keys, separated by spaces, without an equivalent. off: values that disable them, like empty values."""
    return each(keys, Dropped(NoEquivalent(advice), (None, False, 0, "", *off)))
