"""Readers of other trainers' values: each converts one value, or raises UnreadableError."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erniekit.config.others.table import OFF, Off, Reader, UnreadableError
from erniekit.config.section import BOOLEANS
from erniekit.paths import escape_path

_DATA_FILE = re.compile(r"\.(jsonl?|parquet|arrow|csv|tsv|txt)(\.gz)?(#\d+)?\Z")
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+(#\d+)?\Z")


def text(value: Any) -> str:
    """A string, or a plain value as a string."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise UnreadableError("must be a string")
    return str(value).strip()


def number(value: Any) -> float:
    """A number, also as a string such as "1e-5"."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        return float(value)
    except ValueError:
        raise UnreadableError("must be a number") from None


def whole(value: Any) -> int:
    """A whole number, also as a string or as 8.0."""
    found = number(value)
    if not found.is_integer():
        raise UnreadableError("must be a whole number")
    return int(found)


def positive(value: Any) -> int | Off:
    """A whole number; OFF for zero, below, and null."""
    found = 0 if value is None else whole(value)
    return found if found > 0 else OFF


def boolean(value: Any) -> bool:
    """True or false, also as 0, 1, or a string."""
    found = BOOLEANS.get(str(value).strip().lower(), value)
    if found in ("0", "1") or isinstance(found, int):
        return bool(int(found))
    raise UnreadableError("must be true or false")


def when_true(result: Any, otherwise: Any = OFF) -> Reader:
    """A reader of a switch: `result` if it is on."""
    return lambda value: result if value is not None and boolean(value) else otherwise


def choice(results: Mapping[str, Any]) -> Reader:
    """A reader of one of these words, in any case; null and an empty string are OFF."""

    def read(value: Any) -> Any:
        if value is None or value == "":
            return OFF
        word = str(value).strip().lower()
        if word not in results:
            raise UnreadableError(f"must be one of {', '.join(results)}")
        return results[word]

    return read


def words(value: Any) -> list[str]:
    """A list of strings, also as one string split at commas. Empty entries and null are left out."""
    items = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(items, list) or not all(isinstance(item, str | int | float) for item in items):
        raise UnreadableError("must be a list of strings, or one string with commas")
    return [str(item).strip() for item in items if str(item).strip()]


def targets(value: Any) -> list[str] | Off:
    """Modules with adapters; OFF for all linear layers, which is the default here."""
    found = words(value)
    return OFF if found in (["all"], ["all-linear"]) else found


def numbers(value: Any) -> list[float]:
    """A list of numbers, also as one string with commas and with or without brackets, such as "[1,1]"."""
    return [number(item) for item in words(value.strip("[] ") if isinstance(value, str) else value)]


def path(value: Any) -> str:
    """A path in the form of our configuration, where $ is escaped; without a slash at the end."""
    found = text(value)
    return escape_path(found.rstrip("/") or found)


def checkpoint(value: Any) -> str:
    """The path of a checkpoint, with the -PT release of a model instead of -Paddle: its config.json has all token ids.

    The name of an existing directory is not changed.
    """
    found = path(value)
    return found if Path(text(value)).is_dir() else re.sub(r"-Paddle\Z", "-PT", found)


def sources(value: Any) -> list[str]:
    """Paths of data. A name such as owner/name, which is neither a data file nor a path here, is a Hub dataset."""
    return [f"hub:{item}" if _is_hub_name(item) else path(item) for item in words(value)]


def _is_hub_name(item: str) -> bool:
    return _HUB_NAME.match(item) is not None and not _DATA_FILE.search(item) and not os.path.exists(item)


def frozen_parts(names: Mapping[str, str]) -> Reader:
    """A reader of words, separated by spaces or commas, that name parts of the model."""

    def read(value: Any) -> Any:
        found = [] if value is None else re.split(r"[\s,]+", text(value)) if value != "" else []
        unknown = [word for word in found if word not in names]
        if unknown:
            raise UnreadableError(f"has {unknown[0]}, which is not one of {', '.join(names)}")
        return [names[word] for word in found] or OFF

    return read


def zero_stage(value: Any) -> Any:
    """The number of a ZeRO stage in a name: "stage1", "stage2 offload", "zero3", "ds_z3_config.json"."""
    if value is None or value == "" or value == []:
        return OFF
    found = re.search(r"(?:stage|zero|z)_?([0-3])(?![0-9])", " ".join(words(value)))
    if found is None:
        raise UnreadableError("names no ZeRO stage from 0 to 3; set parallel.shard")
    return int(found[1])
