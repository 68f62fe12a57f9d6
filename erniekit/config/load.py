"""Reads a configuration: YAML files that extend each other, then overrides, then validation against the schema.

All problems are reported at once, one per line, with file and line, the full key, the allowed values and the nearest
known key.
"""

import copy
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from erniekit.config import hints
from erniekit.config.config import Config
from erniekit.config.others.recognize import check_trains, recognize
from erniekit.config.rules import CONFLICT, Conflict
from erniekit.config.section import AS_WRITTEN, BAD_PATH
from erniekit.config.source import (
    KeyPath,
    LocatedValues,
    Location,
    Problem,
    dotted,
    dump_yaml,
    parse_override,
    parse_yaml,
    read_text,
)
from erniekit.errors import ConfigError
from erniekit.paths import expand_path

_SECTIONS = hints.SECTIONS
_MAX_CHAIN = 30
_MAX_PROBLEMS = 100


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file, what it extends, and `section.key=value` overrides on top.

    `extends:` is a file or a list of files, relative to the extending file. Later files win over earlier ones, and the
    extending file over all. Mappings are merged; lists and values are replaced. `~`, `${NAME}` and `$NAME` in paths are
    expanded; paths of models, data and output are relative to the working directory. Raises ConfigError with one line
    per problem.
    """
    origin = str(path)
    settings = _read_file(origin, (), {})
    for text in overrides:
        override = parse_override(text)
        if "extends" in override.values:
            override = LocatedValues(
                problems=[Problem(override.locations[("extends",)], "extends", "can only be set in a file")]
            )
        settings.merge(override)
    return _validated(settings, origin)


def dump_config(config: Config, *, defaults: bool = True) -> str:
    """The configuration as YAML that `load_config` reads back to an equal configuration.

    defaults: False leaves out settings with their default.
    """
    return dump_yaml(config.model_dump(context=AS_WRITTEN, exclude_defaults=not defaults))


def _read_file(origin: str, chain: tuple[str, ...], read: dict[str, LocatedValues]) -> LocatedValues:
    """A file applied to the files that it extends.

    chain: the files that extend this one, outermost first. read: what was read before, by real path, since several
    files may extend one.
    """
    place = os.path.realpath(origin)
    if place not in read:
        read[place] = _read_new_file(origin, chain, read)
    return copy.deepcopy(read[place])


def _read_new_file(origin: str, chain: tuple[str, ...], read: dict[str, LocatedValues]) -> LocatedValues:
    if len(chain) >= _MAX_CHAIN:
        raise ConfigError(
            f"{origin}: is extended by {len(chain)} files, one after the other, which is too many"
        )
    own = parse_yaml(read_text(origin), origin)
    _check_trainer(own.values, origin)
    for name in _SECTIONS:
        # A section with all keys commented out is null in YAML.
        if name in own.values and own.values[name] is None:
            own.values[name] = {}
    # A top-level key used only for anchors, such as `defaults: &defaults`, is not a setting.
    for name in own.shared - set(Config.model_fields) - {"extends"}:
        own.values.pop(name, None)

    settings = LocatedValues()
    location = own.locations.get(("extends",))
    for base in _base_files(own, origin):
        base_chain = (*chain, origin)
        if any(os.path.realpath(base) == os.path.realpath(file) for file in base_chain):
            names = " -> ".join((*base_chain, base))
            raise ConfigError(f"{location}: extends: circular reference: {names}")
        if not os.path.isfile(base):
            detail = f"no such file: {base}; a relative path starts at the directory of the file that has it"
            own.problems.append(Problem(location or Location(origin, 1), "extends", detail))
            continue
        settings.merge(_read_file(base, base_chain, read))
    settings.merge(own)
    return settings


def _check_trainer(values: dict[str, Any], origin: str) -> None:
    """Raise ConfigError, with the command to convert it, for a configuration of another trainer."""
    trainer = recognize(values, _SECTIONS)
    if trainer is not None:
        check_trains(values, trainer, origin)
        new = str(Path(origin).with_name(f"{Path(origin).stem}_converted.yaml"))
        command = shlex.join(["erniekit", "config", "convert", origin, "-o", new])
        raise ConfigError(
            f"{origin}: is a configuration of {trainer.name}, with other keys. Convert it: {command}"
        )


def _base_files(own: LocatedValues, origin: str) -> list[str]:
    """The files that `extends` names. Removes the key from the values."""
    if "extends" not in own.values:
        return []
    value = own.values.pop("extends")
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        message = f"must be a file or a list of files, got {hints.shown(value)}"
        own.problems.append(Problem(own.locations[("extends",)], "extends", message))
        return []
    found = []
    for name in names:
        try:
            found.append(os.path.normpath(os.path.join(os.path.dirname(origin), expand_path(name))))
        except ConfigError as error:
            own.problems.append(Problem(own.locations[("extends",)], "extends", str(error)))
    return found


def _validated(settings: LocatedValues, origin: str) -> Config:
    for name in _SECTIONS:
        settings.values.setdefault(name, {})
    top = Location(origin, 1)
    problems = list(settings.problems[:_MAX_PROBLEMS])
    try:
        config = Config.model_validate(settings.values)
    except ValidationError as error:
        details = error.errors(include_url=False)[:_MAX_PROBLEMS]
        problems += (_problem(detail, settings, top) for detail in details if detail["type"] != CONFLICT)
        for conflict in _conflicts(details) or _conflicts_beside(settings.values, details):
            location = settings.location_of(tuple(conflict.keys[0].split("."))) or top
            problems.append(Problem(location, conflict.keys[0], conflict.message))
    if problems:
        raise ConfigError(_report(problems, origin))
    return config


def _report(problems: Iterable[Problem], origin: str) -> str:
    """One line per problem: first the file itself, then its bases, then overrides."""
    unique = list(dict.fromkeys(problems))
    lines = [str(problem) for problem in sorted(unique, key=lambda p: _reading_order(p.location, origin))]
    if len(lines) == 1:
        return lines[0]
    return "\n  ".join([f"{origin}: {len(lines)} problems", *lines])


def _reading_order(location: Location, origin: str) -> tuple[int, str, int]:
    rank = 0 if location.origin == origin else 2 if location.line is None else 1
    return rank, location.origin, location.line or 0


def _problem(detail: ErrorDetails, settings: LocatedValues, top: Location) -> Problem:
    path: KeyPath = detail["loc"]
    location = settings.location_of(path) or top
    key, target = dotted(path), hints.target_of(path)
    if detail["type"] == "extra_forbidden" or target is None:
        return Problem(location, key, f"unknown key; {hints.meant(path)}")
    if detail["type"] == "missing":
        return Problem(location, key, f"is required: {hints.allowed(target)}. {target.description}")
    if detail["type"] == BAD_PATH:
        return Problem(location, key, detail["ctx"]["text"])
    value = detail["input"]
    message = f"must be {hints.allowed(target)}, got {hints.shown(value)}"
    if (choice := hints.nearest_choice(target, value)) is not None:
        message += f"; did you mean `{choice}`?"
    elif isinstance(value, bool) and f"{key}.enabled" in hints.KNOWN_KEYS:
        message += f"; did you mean `{key}.enabled`?"
    return Problem(location, key, message)


def _conflicts(details: Iterable[ErrorDetails]) -> list[Conflict]:
    return [c for detail in details if detail["type"] == CONFLICT for c in detail["ctx"]["conflicts"]]


def _conflicts_beside(values: dict[str, Any], details: Iterable[ErrorDetails]) -> list[Conflict]:
    """Broken rules among the valid settings, when other settings are invalid.

    The schema checks its rules only when every field is valid. So invalid fields are replaced by defaults (or by a
    placeholder where there is none), and rules that involve one of them are left out.
    """
    repaired = copy.deepcopy(values)
    replaced: set[str] = set()
    for detail in details:
        section, *rest = (str(part) for part in detail["loc"])
        if section not in _SECTIONS:
            repaired.pop(section, None)
        elif not rest or not isinstance(repaired[section], dict):
            repaired[section] = {}
            replaced |= {key for key in hints.KNOWN_KEYS if key.startswith(f"{section}.")}
        else:
            repaired[section].pop(rest[0], None)
            replaced.add(f"{section}.{rest[0]}")
    for key, field in hints.KNOWN_KEYS.items():
        section, name = key.split(".")
        if field.is_required() and name not in repaired[section]:
            repaired[section][name] = "stand-in"
    try:
        Config.model_validate(repaired)
    except ValidationError as error:
        found = _conflicts(error.errors(include_url=False))
        return [conflict for conflict in found if replaced.isdisjoint(conflict.keys)]
    return []
