"""Converts the values of another trainer's configuration to settings that load here."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from erniekit.config.config import Config
from erniekit.config.convert.combine import Roles, Setting, Unconverted, combine
from erniekit.config.convert.datasets import name_sources
from erniekit.config.convert.script import read_script
from erniekit.config.hints import KNOWN_KEYS, SECTIONS, allowed, shown, target_of
from erniekit.config.others import swift
from erniekit.config.others.recognize import TABLES, TrainerName, check_trains, recognize
from erniekit.config.others.table import (
    OFF,
    Key,
    KeyTable,
    NoEquivalent,
    NotNeeded,
    UnreadableError,
)
from erniekit.config.rules import CONFLICT
from erniekit.config.source import dotted, parse_yaml, read_text
from erniekit.errors import ConfigError

_PLACEHOLDERS = {
    "model.path": Setting("model.path", "MODEL", (), "check: the checkpoint to train"),
    "data.train": Setting("data.train", "train.jsonl", (), "check: the training data"),
    "train.output_dir": Setting("train.output_dir", "runs/converted", (), "check: a new directory"),
}
_ALWAYS_WRITTEN = ("data.max_length", "optimizer.learning_rate", "train.epochs", "train.rows_per_step")
"""Settings that are written also where they are our default."""


@dataclass(frozen=True)
class Conversion:
    """The settings of the new file in its order, and all old keys.

    trainer: the name of the old trainer; keys: the number of old keys; written: settings of the file; mapped: all
    settings from old keys, including those that are our default; unconverted: old keys without a setting.
    """

    trainer: str
    keys: int
    written: tuple[Setting, ...]
    mapped: tuple[Setting, ...]
    unconverted: tuple[Unconverted, ...]


def convert_file(path: Path, trainer: TrainerName | None = None, gpus: int | None = None) -> Conversion:
    """Convert a YAML or JSON file, or the command in a script of ms-swift.

    trainer: None recognizes it by its keys; gpus: the number of GPUs of the old run. Raises ConfigError for a file that
    cannot be read, and for one that is not the configuration of a training run.
    """
    if path.suffix == ".sh":
        values, processes = read_script(read_text(str(path)), str(path))
        return _convert(values, swift.variant(values), path, gpus or processes)
    values = _read(path)
    table = _table(values, path, trainer)
    check_trains(values, table, str(path))
    return _convert(values, table, path, gpus)


def _convert(values: Mapping[str, Any], table: KeyTable, path: Path, gpus: int | None) -> Conversion:
    try:
        return convert(values, table, gpus)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def convert(values: Mapping[str, Any], table: KeyTable, gpus: int | None = None) -> Conversion:
    """Convert values with the table of their trainer. Raises ConfigError for a method that is not supported."""
    read = _Read(table)
    for key, value in values.items():
        read.key(key, value)
    name_sources(read.roles)
    model = next((setting.value for setting in read.settings if setting.key == "model.path"), "")
    roles = Roles(table, str(model), read.roles, read.role_keys, gpus)
    unconverted = read.unconverted
    settings = {setting.key: setting for setting in read.settings}
    for made in combine(roles):
        if isinstance(made, Unconverted):
            unconverted.append(made)
        else:
            is_default = not made.old and not made.comment
            settings[made.key] = replace(made, comment=_default_of(table)) if is_default else made
    _add_defaults(settings, table, lora=roles.lora)
    unconverted += _remove_invalid(settings)
    mapped = [setting for setting in settings.values() if setting.old]
    mentioned = {key for setting in mapped for key in setting.old}
    unconverted = [*_without(unconverted, mentioned)]
    mentioned |= {key for item in unconverted for key in item.old}
    unused = tuple(key for key in values if key not in mentioned)
    if unused:
        unconverted.append(Unconverted(unused, NotNeeded("no effect in this run")))
    order = {key: number for number, key in enumerate(("task", *KNOWN_KEYS))}
    written = [
        setting
        for setting in sorted(settings.values(), key=lambda setting: order[setting.key])
        if setting.value is not OFF
        and (setting.key in _ALWAYS_WRITTEN or setting.value != _our_default(setting.key))
    ]
    return Conversion(table.name, len(values), tuple(written), tuple(mapped), tuple(unconverted))


def _read(path: Path) -> dict[str, Any]:
    text = read_text(str(path))
    if path.suffix == ".json":
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: must be a JSON object with the keys of a run")
        return values
    found = parse_yaml(text, str(path))
    if found.problems:
        raise ConfigError("\n".join(map(str, found.problems)))
    return found.values


def _table(values: Mapping[str, Any], path: Path, name: TrainerName | None) -> KeyTable:
    if name is not None:
        return TABLES[name](values)
    found = recognize(values, SECTIONS)
    if found is None:
        ours = any(isinstance(values.get(section), dict) for section in SECTIONS)
        known = ", ".join(make({}).name for make in TABLES.values())
        raise ConfigError(
            f"{path}: is already a configuration of erniekit"
            if ours
            else f"{path}: has too few keys of {known} to tell which one it is for; name it with --from"
        )
    return found


class _Read:
    """The keys of a file, looked up in the table one by one. Keys with a role are left to `combine`."""

    def __init__(self, table: KeyTable) -> None:
        self.rules, self.name = table.rules, table.name
        self.settings: list[Setting] = []
        self.unconverted: list[Unconverted] = []
        self.roles: dict[str, Any] = {}
        self.role_keys: dict[str, tuple[str, ...]] = defaultdict(tuple)

    def key(self, key: str, value: Any) -> None:
        rule = self.rules.get(key)
        if rule is None:
            self._unconverted(
                key, NoEquivalent(f"this command does not know the key; look up in {self.name} what it does")
            )
        elif value is None or value == "":
            self._unconverted(key, NotNeeded("not set"))
        elif isinstance(rule, Key):
            self._value(key, value, rule)
        else:
            if rule.role and rule.read is not None:
                self._role(key, value, rule.role, rule.read)
            is_off = isinstance(rule.outcome, NoEquivalent) and value in rule.off
            self._unconverted(key, NotNeeded("no effect at this value") if is_off else rule.outcome)

    def _value(self, key: str, value: Any, rule: Key) -> None:
        if rule.role:
            self._role(key, value, rule.role, rule.read)
            return
        found = self._converted(key, value, rule.read)
        if found is not None:
            self.settings.append(Setting(rule.name, found, (key,), rule.comment))
        elif rule.essential:
            outcome = self.unconverted[-1].outcome
            assert isinstance(outcome, NoEquivalent)
            raise ConfigError(f"{key}: {shown(value)} has no equivalent here: {outcome.advice}")

    def _role(self, key: str, value: Any, role: str, read: Any) -> None:
        found = self._converted(key, value, read)
        if found is not None:
            self.roles[role] = found
            self.role_keys[role] += (key,)

    def _converted(self, key: str, value: Any, read: Any) -> Any:
        """The converted value; None if the key is reported instead."""
        try:
            found = read(value)
        except UnreadableError as error:
            found = NoEquivalent(f"{shown(value)} {error}")
        if isinstance(found, NotNeeded | NoEquivalent):
            self._unconverted(key, found)
            return None
        return found

    def _unconverted(self, key: str, outcome: NotNeeded | NoEquivalent) -> None:
        self.unconverted.append(Unconverted((key,), outcome))


def _add_defaults(settings: dict[str, Setting], table: KeyTable, *, lora: bool) -> None:
    for key, default in table.defaults.items():
        if key not in settings and (lora or not (default.lora or key.startswith("lora."))):
            settings[key] = Setting(key, default.value, (), default.comment or _default_of(table))


def _default_of(table: KeyTable) -> str:
    return f"the default of {table.name}"


def _remove_invalid(settings: dict[str, Setting]) -> Iterator[Unconverted]:
    """Remove settings that the schema or its rules refuse, until the rest is valid. Yields them with the reason.

    A required setting gets a placeholder, with a comment that asks to replace it.
    """
    for key, stand_in in _PLACEHOLDERS.items():
        settings.setdefault(key, stand_in)
    while problems := list(_problems(settings)):
        before = dict(settings)
        for keys, message in problems:
            removed = next((settings.pop(key) for key in keys if key in settings), None)
            if removed is None:
                continue
            key = removed.key
            if key in _PLACEHOLDERS:
                settings[key] = _PLACEHOLDERS[key]
            if removed.old:
                yield Unconverted(removed.old, NoEquivalent(f"{key}: {message}"))
        assert settings != before, problems


def _problems(settings: Mapping[str, Setting]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The keys and the message of each invalid setting and broken rule."""
    values: dict[str, Any] = {name: {} for name in SECTIONS}
    for key, setting in settings.items():
        section, _, name = key.partition(".")
        if setting.value is OFF:
            continue
        if name:
            values[section][name] = setting.value
        else:
            values[section] = setting.value
    try:
        Config.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == CONFLICT:
                yield from ((conflict.keys, conflict.message) for conflict in detail["ctx"]["conflicts"])
                continue
            path = detail["loc"]
            target = target_of(path)
            where = f"{dotted(path)} " if len(path) > 2 else ""
            problem = (
                detail["msg"]
                if target is None
                else f"must be {allowed(target)}, got {shown(detail['input'])}"
            )
            yield (dotted(path[:2]),), where + problem


def _without(items: Iterable[Unconverted], keys: set[str]) -> Iterator[Unconverted]:
    for item in items:
        left = tuple(key for key in item.old if key not in keys)
        if left:
            yield Unconverted(left, item.outcome)


def _our_default(key: str) -> Any:
    field = Config.model_fields[key] if key == "task" else KNOWN_KEYS[key]
    return field.default
