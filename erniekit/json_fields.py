"""Reads JSON strictly, and fields of a model's JSON files with checks: untrusted files determine memory use."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Never

from erniekit.display.text import clipped

MOST = 1 << 24
"""The largest size that a field may have, unless it says another: of a vocabulary, a width, a number of positions."""


def _refuse_constant(constant: str) -> Never:
    raise ValueError(f"{constant} is not JSON")


STRICT_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
"""Refuses NaN and Infinity, which Python reads and other parsers of a model's answer do not."""


def read_object(source: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object of a section. Raises KeyError if it is absent, ValueError if it is not an object."""
    found = source.get(key)
    if found is None:
        raise KeyError(key)
    if not isinstance(found, dict):
        raise ValueError(f"{key} must be an object, not {_shown(found)}")
    return found


def read_integer(
    source: Mapping[str, Any], key: str, default: int | None = None, least: int = 1, most: int = MOST
) -> int:
    """A whole number in a range; null is the default.

    Raises KeyError if it is absent without a default, ValueError for anything else.
    """
    value = source.get(key)
    if value is None:
        value = default
    if value is None:
        raise KeyError(key)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not least <= value <= most:
        raise ValueError(f"{key} must be a whole number from {least} to {most:,}, not {_shown(value)}")
    return int(value)


def read_text(source: Mapping[str, Any], key: str) -> str:
    """A text that paths may hold. Raises KeyError if it is absent, ValueError for anything else."""
    value = source.get(key)
    if value is None:
        raise KeyError(key)
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{key} must be text, not {_shown(value)}")
    return value


def read_number(source: Mapping[str, Any], key: str, default: float, most: float = 1e12) -> float:
    """A number above 0; null is the default. Raises ValueError."""
    value = source.get(key)
    return above_zero(key, default if value is None else value, most)


def above_zero(name: str, value: Any, most: float = 1e12) -> float:
    """A value that must be a number above 0. Raises ValueError."""
    # Smaller numbers are 0 in float32.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-30 <= value <= most:
        raise ValueError(f"{name} must be a number above 0 and at most {most:g}, not {_shown(value)}")
    return float(value)


def read_numbers(source: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    """A list of finite numbers. Raises KeyError if it is absent, ValueError otherwise."""
    found = source.get(key)
    if found is None:
        raise KeyError(key)
    numbers = [each for each in found if type(each) in (int, float)] if isinstance(found, list) else []
    if not isinstance(found, list) or len(numbers) != count or len(found) != count:
        raise ValueError(f"{key} must be a list of {count} numbers, not {_shown(found)}")
    if not all(abs(number) < 1e6 and math.isfinite(number) for number in numbers):
        raise ValueError(f"{key} must be numbers of a size below 1,000,000, they are {_shown(found)}")
    return tuple(map(float, numbers))


def read_flag(source: Mapping[str, Any], key: str, default: bool) -> bool:
    """true or false. Raises ValueError for anything else."""
    value = source.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return (
        clipped(repr(value))
        if not isinstance(value, int) or abs(value) < 10**30
        else "a number of many digits"
    )
