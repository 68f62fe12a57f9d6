"""Paths as people write them where no shell expands them (YAML, `key=value`, `--option=`), and the user's cache."""

import os
import re
from pathlib import Path
from typing import Any

from erniekit.errors import ConfigError

HUB = "hub:"
"""Begins the name of a dataset of the hub, which is no path."""

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
# `$$`; `${NAME}` anywhere; `$NAME` at the start of the path or of a part of it, since names of files may hold a `$`.
_MARK = re.compile(rf"\$\$|\$\{{([^}}]*)\}}|(?:(?<=/)|\A)\$({_NAME})")


def user_cache_dir() -> Path:
    """Where what can be made again is kept: erniekit in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erniekit"


def data_cache_dir(named: str | None) -> Path:
    """Where encoded samples and datasets of the hub are kept. named: data.cache_dir of the configuration."""
    return user_cache_dir() / "data" if named is None else Path(named)


def expand_path(text: str) -> str:
    """A path with `~`, `~user`, `${NAME}` and `$NAME` expanded; `$$` stands for a dollar sign.

    `hub:owner/name` stays. Raises ConfigError for a variable that is not set or empty, a `${...}` that is no name of a
    variable, and a user who is not there.
    """
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
    """An expanded path as a text that `expand_path` turns into the same path."""
    return path if path.startswith(HUB) else path.replace("$", "$$")


def expand_argument(value: Any) -> Any:
    """Expand a `Path`, or each one of a list or tuple; anything else stays."""
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
