"""Recognizes the trainer of a flat configuration file, and finds our key for an old one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from erniekit.config.others import erniekit, swift
from erniekit.config.others.llamafactory import LLAMAFACTORY
from erniekit.config.others.table import SERVING, Dropped, Key, KeyTable, Rule
from erniekit.errors import ConfigError

TrainerName = Literal["erniekit", "llamafactory", "swift"]

TABLES: dict[TrainerName, Callable[[Mapping[str, Any]], KeyTable]] = {
    "erniekit": erniekit.variant,
    "llamafactory": lambda values: LLAMAFACTORY,
    "swift": swift.variant,
}
"""The table for the values of a file, by the trainer's name in options."""

_LEAST = 3


def recognize(values: Mapping[str, Any], sections: Collection[str]) -> KeyTable | None:
    """The trainer that knows most keys of a file; None if it knows fewer than 3, or not half of them.

    sections: the names of our sections. A file with one of them is ours.
    """
    if "extends" in values or any(isinstance(values.get(name), dict) for name in sections):
        return None
    tables = [make(values) for make in TABLES.values()]
    known = {table.name: sum(key in table.rules for key in values) for table in tables}
    best = max(tables, key=lambda table: known[table.name])
    return best if known[best.name] >= max(_LEAST, len(values) / 2) else None


def check_trains(values: Mapping[str, Any], table: KeyTable, origin: str) -> None:
    """Raise ConfigError for a file of another command than train, or without training data."""
    rules = [table.rules[key] for key in values if key in table.rules]
    names = {rule.name for rule in rules if isinstance(rule, Key)}
    serves = any(isinstance(rule, Dropped) and rule.outcome is SERVING for rule in rules)
    if "data.train" not in names and (serves or "data.eval" in names):
        raise ConfigError(
            f"{origin}: is a configuration of {table.name} without training data, for another command. {SERVING.why}"
        )


def rule_of(key: str) -> Rule | None:
    """The rule for a key of any trainer; rules with a key of ours take precedence."""
    tables = (erniekit.SFT, erniekit.VL, LLAMAFACTORY, swift.SWIFT)
    found = [table.rules[key] for table in tables if key in table.rules]
    return next((rule for rule in found if isinstance(rule, Key)), found[0] if found else None)
