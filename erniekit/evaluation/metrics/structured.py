"""JSON answers: validity and equality."""

from __future__ import annotations

import re
from typing import Any

from erniekit.json_fields import STRICT_JSON

_FENCED = re.compile(r"\s*```[a-zA-Z]*\n(.*?)\n?```\s*", re.DOTALL)


class NotJson(Exception):
    """A text is not JSON."""


def read_json(text: str) -> Any:
    """The value of a JSON text (RFC 8259: no NaN), with or without a code fence. Raises NotJson."""
    fenced = _FENCED.fullmatch(text)
    try:
        return STRICT_JSON.decode(fenced[1] if fenced else text)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from error


def json_valid(answer: str) -> float:
    """1 if the answer is JSON."""
    try:
        read_json(answer)
    except NotJson:
        return 0.0
    return 1.0


def json_equal(answer: str, reference: str) -> float | None:
    """1 if the answer equals the reference as a JSON value; None if the reference is no JSON object or array."""
    if not is_json(reference):
        return None
    try:
        return float(same_json(read_json(answer), read_json(reference)))
    except NotJson:
        return 0.0


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or array; single numbers and strings count as text."""
    try:
        return isinstance(read_json(text), dict | list)
    except NotJson:
        return False


def same_json(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal: keys in any order; 1 equals 1.0, but not true.

    As JSON Schema has it (draft 2020-12, section 4.2.2).
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_json(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same_json, first, second))
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    return bool(first == second)
