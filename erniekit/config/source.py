"""YAML read into values that remember the file and line of each key.

Scalars follow YAML 1.2: `1e-5` is a number, and only `true` and `false` are booleans, so `yes`, `on` and leading zeros
keep their meaning. Merge keys (`<<: *anchor`, or a list of anchors) follow YAML 1.1: explicit keys win over merged
keys, and earlier anchors over later ones. Duplicate keys, tags and recursive values are problems, each with its line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from erniekit.display.text import clipped
from erniekit.errors import ConfigError
from erniekit.local_files import open_regular

COMMAND_LINE = "command line"

KeyPath = tuple[str | int, ...]
_Entry = tuple[yaml.Node, yaml.Node]
_MERGE = "<<"
# Extensions of data files, which are never configurations; another trainer's configuration may be .json.
_DATA_SUFFIXES = (".jsonl", ".parquet", ".arrow", ".csv", ".tsv")
_MAX_BYTES = 256 << 10  # PyYAML takes seconds for this size
# Aliases repeat values: a few lines may have more values than fit in memory.
_MAX_VALUES = 50_000
_MAX_KEY, _MAX_MESSAGE = 200, 1000  # characters shown
_MAX_DEPTH = 50


class Location(NamedTuple):
    """The origin of a setting: a file and line (from 1), or the command line."""

    origin: str
    line: int | None = None

    def __str__(self) -> str:
        return self.origin if self.line is None else f"{self.origin}:{self.line}"


class Problem(NamedTuple):
    """An error in a configuration: location, dotted key (may be empty) and message."""

    location: Location
    key: str
    message: str

    def __str__(self) -> str:
        message = clipped(self.message, _MAX_MESSAGE)
        key = f"{clipped(self.key, _MAX_KEY)}: " if self.key else ""
        return f"{self.location}: {key}{message}"


@dataclass
class LocatedValues:
    """Nested values with the location of every key and list item.

    shared: top-level keys with an anchor that another top-level key uses.
    """

    values: dict[str, Any] = field(default_factory=dict)
    locations: dict[KeyPath, Location] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)

    def merge(self, over: "LocatedValues") -> None:
        """Apply `over`: mappings are merged key by key, everything else is replaced."""
        self.problems = list(dict.fromkeys([*self.problems, *over.problems]))
        self._merge_mapping(self.values, over.values, over, ())

    def _merge_mapping(
        self, values: dict[str, Any], over_values: dict[str, Any], over: "LocatedValues", path: KeyPath
    ) -> None:
        for key, value in over_values.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(values.get(key), dict):
                self.locations[here] = over.locations[here]
                self._merge_mapping(values[key], value, over, here)
                continue
            for replaced in _paths(values.get(key), here):
                self.locations.pop(replaced, None)
            for added in _paths(value, here):
                if added in over.locations:
                    self.locations[added] = over.locations[added]
            values[key] = value

    def location_of(self, path: KeyPath) -> Location | None:
        """The location of `path`, or of the nearest enclosing mapping or list that has one."""
        while path:
            if path in self.locations:
                return self.locations[path]
            path = path[:-1]
        return None


def _paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The path of a value and of everything in it."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from _paths(each, (*path, key))


def dotted(path: KeyPath) -> str:
    """`("optimizer", "groups", 0, "match")` as `optimizer.groups[0].match`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's name and type)
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth >= _MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(None, None, f"nested more than {_MAX_DEPTH} levels", mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Dumper(yaml.SafeDumper):
    """Quotes strings that this reader or another YAML reader would resolve to another type."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Escape strings with line breaks (Unicode has several) or control characters: other styles fold or lose them."""
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)

_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
_TAG = "tag:yaml.org,2002:"
for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML that `parse_yaml` reads back to equal values, with keys in the given order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def inline_yaml(value: Any) -> str:
    """A value as YAML on one line. Numbers are in short form: 3 for 3.0 and 1e-5 for 1e-05."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return str(int(value))
    if isinstance(value, float) and abs(value) < 1e-2:
        mantissa, _, exponent = f"{value:.15e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6
    )
    return text.removesuffix("...\n").strip()


def read_text(origin: str) -> str:
    """The text of a file. Raises ConfigError if it does not exist, is too long, or is not UTF-8 text."""
    if Path(origin).suffix in _DATA_SUFFIXES:
        raise ConfigError(
            f"{origin}: is a data file; a configuration is a YAML file, with data.train: {origin} in it"
        )
    try:
        with open_regular(Path(origin)) as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{origin}: no such file") from None
    except IsADirectoryError:
        inside = Path(origin, "config.yaml")
        meant = f"; did you mean {inside}?" if inside.is_file() else ""
        raise ConfigError(f"{origin}: is a directory, not a YAML file{meant}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{origin}: cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{origin}: has more than {_MAX_BYTES:,} bytes, which no configuration has")
    return text


def parse_yaml(text: str, origin: str) -> LocatedValues:
    """The values of one YAML document. Raises ConfigError for a syntax error and for anything but a mapping."""
    node = _compose(text, origin)
    if node is None:
        raise ConfigError(f"{origin}: is empty; a configuration has sections such as model, data and train")
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise ConfigError(f"{origin}:{line}: must be a mapping of sections, not {_kind(node)}")
    reader = _Reader(origin)
    reader.settings.values = reader.value(node, ())
    reader.settings.shared = reader.shared()
    return reader.settings


def parse_override(text: str) -> LocatedValues:
    """The value of one `section.key=value`, with the value in YAML. A malformed override becomes a problem."""
    location = Location(COMMAND_LINE)
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        message = f"{clipped(text)!r} is not KEY=VALUE, such as optimizer.learning_rate=1e-4"
        return LocatedValues(problems=[Problem(location, "", message)])
    try:
        node = _compose(value, COMMAND_LINE)
    except ConfigError as error:
        _, quotes, hint = str(error).partition("; inside")
        message = f"its value is not valid YAML: {clipped(value, 200)}{quotes}{hint}"
        return LocatedValues(problems=[Problem(location, key, message)])
    reader = _Reader(COMMAND_LINE)
    inner: Any = None if node is None else reader.value(node, path)
    for depth in range(len(path), 0, -1):
        reader.settings.locations[path[:depth]] = location
        inner = {path[depth - 1]: inner}
    reader.settings.values = inner
    return reader.settings


def _compose(text: str, origin: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = Location(origin, None if mark is None else mark.line + 1)
        written = "" if mark is None else "".join(text.splitlines()[mark.line : mark.line + 1])
        hint = '; inside { } or [ ], quote text with ${...}: "${HOME}/x"' if "${" in written else ""
        raise ConfigError(
            f"{location}: not valid YAML: {clipped(str(error.problem or error.context), 300)}{hint}"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(
            f"{Location(origin, line)}: not valid YAML: character {error.character!r} is not allowed"
        ) from None
    return node


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


class _Reader:
    """Converts nodes to values and records the location of each."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.settings = LocatedValues()
        self._open: list[yaml.Node] = []
        self._count = 0
        # By node: the top-level keys that contain it, "" for the top level.
        self._users: dict[int, set[str]] = {}

    def shared(self) -> set[str]:
        return set().union(*(users for users in self._users.values() if len(users) > 1))

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        if not self._enter(node, path):
            return None
        try:
            if isinstance(node, yaml.MappingNode):
                return dict(self._items(node, path))
            if isinstance(node, yaml.SequenceNode):
                return [self._item(child, (*path, i)) for i, child in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.pop()

    def _enter(self, node: yaml.Node, path: KeyPath) -> bool:
        """Push a node, which the caller pops; False, and a problem, for a node inside itself."""
        if any(node is outer for outer in self._open):
            self._problem(node, path, "contains itself")
            return False
        self._count += 1 + (0 if isinstance(node, yaml.ScalarNode) else len(node.value))
        if self._count > _MAX_VALUES:
            raise ConfigError(
                f"{self._location(node)}: the file has more than {_MAX_VALUES:,} values with its aliases"
            )
        self._open.append(node)
        self._users.setdefault(id(node), set()).add(str(path[0]) if path else "")
        return True

    def _items(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[str, Any]]:
        for key, (key_node, value_node) in self._entries(node, path).items():
            self.settings.locations[(*path, key)] = self._location(key_node)
            yield key, self.value(value_node, (*path, key))

    def _entries(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, _Entry]:
        """The keys of a mapping with their nodes, including merged keys."""
        first_line: dict[str, int] = {}
        entries: dict[str, _Entry] = {}
        merged: yaml.Node | None = None
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, f"a key must be a string, not {_kind(key_node)}")
                continue
            key = key_node.value
            if not _is_text(key):
                self._problem(key_node, path, "a key has half a surrogate pair, which is not text")
                continue
            if key in first_line:
                self._problem(key_node, (*path, key), f"is set twice, first on line {first_line[key]}")
                continue
            first_line[key] = key_node.start_mark.line + 1
            if key == _MERGE and key_node.style is None:
                merged = value_node
            else:
                entries[key] = key_node, value_node
        if merged is not None:
            for key, entry in self._merged(merged, path):
                entries.setdefault(key, entry)
        return entries

    def _merged(self, node: yaml.Node, path: KeyPath) -> Iterator[tuple[str, _Entry]]:
        """The keys of a mapping or of a list of mappings, in order of precedence."""
        for mapping in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(mapping, yaml.MappingNode):
                message = "must be a mapping or a list of mappings, such as *defaults for an anchor &defaults"
                self._problem(mapping, (*path, _MERGE), message)
            elif self._enter(mapping, path):
                yield from self._entries(mapping, path).items()
                self._open.pop()

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self.settings.locations[path] = self._location(node)
        return self.value(node, path)

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        if not _is_text(text):
            self._problem(node, path, "has half a surrogate pair, which is not text")
            return None
        try:
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            if kind == "int":
                return int(text)
        except ValueError:
            self._problem(node, path, f"{text[:40]!r} is not a number")
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "null":
            return None
        if kind != "str":
            self._problem(node, path, f"the tag {node.tag!r} is not supported")
        return text

    def _location(self, node: yaml.Node) -> Location:
        return Location(self.origin, None if self.origin == COMMAND_LINE else node.start_mark.line + 1)

    def _problem(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.settings.problems.append(Problem(self._location(node), dotted(path), message))
