"""Expansion of `~` and variables in paths where no shell does it (YAML, `key=value`, `--option=`), and the cache."""

import os
import re
from pathlib import Path
from typing import Any

from erniekit.display.text import clipped
from erniekit.errors import ConfigError

HUB = "hub:"
"""Prefix of Hub datasets, which are not paths."""

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
# `$$`; `${NAME}` anywhere; `$NAME` only at the start of a path component, since file names may contain `$`.
_MARK = re.compile(rf"\$\$|\$\{{([^}}]*)\}}|(?:(?<=/)|\A)\$({_NAME})")


def user_cache_dir() -> Path:
    """The cache directory: erniekit in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erniekit"


def data_cache_dir(named: str | None) -> Path:
    """The directory of encoded samples and Hub datasets. named: data.cache_dir of the configuration."""
    return user_cache_dir() / "data" if named is None else Path(named)


def expand_path(text: str) -> str:
    """A path with `~`, `~user`, `${NAME}` and `$NAME` expanded; `$$` is a dollar sign.

    `hub:owner/name` is returned unchanged. Raises ConfigError for an unset or empty variable, an invalid name of a
    variable in `${...}`, and an unknown user.
    """
    if "\0" in text:
        raise ConfigError(f"{clipped(text)}: a path has no null characters")
    if text.startswith(HUB):
        return text
    path = os.path.expanduser(_MARK.sub(_value, text))
    if path.startswith("~"):
        user = path.partition("/")[0]
        raise ConfigError(
            f"{text}: {user} is not the home directory of a user; write ./{path} if that is its name"
        )
    return path


def escape_path(path: str) -> str:
    """The inverse of `expand_path`."""
    return path if path.startswith(HUB) else path.replace("$", "$$")


def expand_argument(value: Any) -> Any:
    """Expand a `Path`, or each `Path` of a list or tuple; other values are returned unchanged."""
    if isinstance(value, Path):
        return Path(expand_path(str(value)))
    if isinstance(value, list | tuple):
        return type(value)(expand_argument(item) for item in value)
    return value


def _value(match: re.Match[str]) -> str:
    whole, name = match.group(), match[1] if match[1] is not None else match[2]
    if whole == "$$":
        return "$"
    if not re.fullmatch(_NAME, name):
        raise ConfigError(
            f"{match.string}: {whole} is not the name of a variable, such as ${{HOME}}; write $$ for a dollar sign"
        )
    value = os.environ.get(name)
    if not value:
        state = "is not set" if value is None else "is empty"
        raise ConfigError(
            f"{match.string}: the environment variable {name} {state}; set it, or write $$ for a dollar sign"
        )
    return value
