"""Tells which trainer a flat configuration file is for, and what an old key is here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from erniekit.config.others import erniekit
from erniekit.config.others.llamafactory import LLAMAFACTORY
from erniekit.config.others.swift import SWIFT
from erniekit.config.others.table import Key, Rule, Trainer

TrainerName = Literal["erniekit", "llamafactory", "swift"]

TRAINERS: dict[TrainerName, Callable[[Mapping[str, Any]], Trainer]] = {
    "erniekit": erniekit.variant,
    "llamafactory": lambda values: LLAMAFACTORY,
    "swift": lambda values: SWIFT,
}
"""The table for the values of a file, by the trainer's name in options."""

_LEAST = 3


def recognise(values: Mapping[str, Any], sections: Collection[str]) -> Trainer | None:
    """The trainer that knows most keys of a file; None if it knows fewer than 3, or not half of them.

    sections: the names of our sections. A file with one of them is ours.
    """
    if "extends" in values or any(isinstance(values.get(name), dict) for name in sections):
        return None
    tables = [table(values) for table in TRAINERS.values()]
    known = {table.name: sum(key in table.rules for key in values) for table in tables}
    best = max(tables, key=lambda table: known[table.name])
    return best if known[best.name] >= max(_LEAST, len(values) / 2) else None


def rule_of(key: str) -> Rule | None:
    """What a key of any trainer is here: our key where one of the tables has one."""
    tables = (erniekit.SFT, erniekit.VL, LLAMAFACTORY, SWIFT)
    found = [table.rules[key] for table in tables if key in table.rules]
    return next((rule for rule in found if isinstance(rule, Key)), found[0] if found else None)
