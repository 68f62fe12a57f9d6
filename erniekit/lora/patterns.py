"""rank_pattern and alpha_pattern of `adapter_config.json`: untrusted regular expressions, matched in bounded time."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniekit.display.text import clipped
from erniekit.errors import CheckpointError

_PLAIN = re.compile(r"[\w.-]+")
_LONGEST_PATTERN, _LONGEST_NAME = 1000, 500
_MOST_REPEATS, _MOST_PATHS = 2, 1000
# Steps of the matcher over all names: a minute.
_MOST_STEPS = 2_000_000_000
# How Python parses patterns; it has no public form.
_PARSER: Any = vars(re)["_parser"]
_ONE = ("LITERAL", "NOT_LITERAL", "ANY", "IN")


class _TooExpensive(ValueError):
    """A pattern that may take very long to match."""


@dataclass(frozen=True)
class _Pattern:
    """A pattern, matched as PEFT does: about paths * n ** repeats steps at most for a name of n characters."""

    place: int
    compiled: re.Pattern[str]
    paths: int
    repeats: int


class ModulePatterns:
    """Values by patterns over module names. The first one that matches counts, also after a prefix with a dot.

    Patterns without special characters other than dots are compared as plain names.
    """

    def __init__(self, file: Path, key: str, values: Mapping[str, float]) -> None:
        """Raises CheckpointError for a pattern that is invalid, or that may take very long."""
        self._where = f"{file}: {key}"
        self._values = list(values.values())
        self._plain: dict[str, int] = {}
        self._patterns: list[_Pattern] = []
        self._steps = 0
        for place, text in enumerate(values):
            if _PLAIN.fullmatch(text):
                self._plain[text] = place
            else:
                self._patterns.append(self._compile(text, place))

    def value(self, name: str, default: float) -> float:
        """The value for a module. Raises CheckpointError if matching takes too many steps for all names."""
        parts = name.split(".") if len(name) <= _LONGEST_NAME else []
        places = [self._plain.get(".".join(parts[start:])) for start in range(len(parts))]
        first = min((place for place in places if place is not None), default=len(self._values))
        for pattern in self._patterns if parts else ():
            if pattern.place > first:
                break
            self._steps += pattern.paths * len(name) ** pattern.repeats
            if self._steps > _MOST_STEPS:
                raise CheckpointError(
                    f"{self._where}: matching takes too long; write names of modules instead"
                )
            if pattern.compiled.match(name):
                return self._values[pattern.place]
        return self._values[first] if first < len(self._values) else default

    def _compile(self, text: str, place: int) -> _Pattern:
        shown = clipped(repr(text))
        try:
            if len(text) > _LONGEST_PATTERN:
                raise _TooExpensive
            with warnings.catch_warnings():
                # Of what a later Python may read differently, such as "[[".
                warnings.simplefilter("ignore", FutureWarning)
                paths, repeats = _cost(_PARSER.parse(text))
                if paths > _MOST_PATHS or repeats > _MOST_REPEATS:
                    raise _TooExpensive
                compiled = re.compile(rf"(.*\.)?({text})$")
            return _Pattern(place, compiled, paths, repeats)
        except _TooExpensive:
            raise CheckpointError(
                f"{self._where}: {shown} may take very long to match; write names of modules, or patterns with at most "
                f"{_MOST_REPEATS} repeated characters such as \\d+"
            ) from None
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(f"{self._where}: {shown} is not a valid pattern: {error}") from None


def read_patterns(file: Path, raw: Mapping[str, Any], key: str) -> ModulePatterns:
    """rank_pattern or alpha_pattern of an adapter's configuration. Ranks are whole. Raises CheckpointError."""
    found = raw.get(key) or {}
    is_one = isinstance(found, dict) and all(type(value) in (int, float) for value in found.values())
    if not is_one or not all(0 < value < 1e9 for value in found.values()):
        raise CheckpointError(f"{file}: {key} must be an object of numbers above 0")
    if key == "rank_pattern" and not all(float(value).is_integer() for value in found.values()):
        raise CheckpointError(f"{file}: {key} must be an object of whole numbers")
    return ModulePatterns(file, key, found)


def _cost(items: Iterable[tuple[Any, Any]]) -> tuple[int, int]:
    """Paths that a matcher may try at one place, and how many of its parts repeat one character.

    Raises _TooExpensive for parts that can match in exponentially many ways, such as repeated groups.
    """
    paths, repeats = 1, 0
    for kind, argument in items:
        match str(kind):
            case "SUBPATTERN":
                inner = _cost(argument[3])
            case "BRANCH":
                found = [_cost(branch) for branch in argument[1]]
                inner = sum(cost[0] for cost in found), max(cost[1] for cost in found)
            case "MAX_REPEAT" | "MIN_REPEAT" if argument[1] <= 1:
                inner = _cost(argument[2])
                inner = inner[0] + 1, inner[1]
            case "MAX_REPEAT" | "MIN_REPEAT" if [str(each) for each, _ in argument[2]] in (
                [one] for one in _ONE
            ):
                inner = 1, 1
            case "AT" | "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                inner = 1, 0
            case _:
                raise _TooExpensive
        paths, repeats = paths * inner[0], repeats + inner[1]
    return paths, repeats
