"""Reads the options of `swift sft` from a shell script, the usual form of runs of ms-swift."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from erniekit.errors import ConfigError

_COMMANDS = ("sft", "pt", "rlhf")


def read_script(text: str, origin: str) -> tuple[dict[str, Any], int | None]:
    """The options of the first `swift sft`, `pt` or `rlhf`, and the number of processes before it (NPROC_PER_NODE).

    Raises ConfigError for a script without such a command.
    """
    for line in text.replace("\\\n", " ").splitlines():
        try:
            # shlex would read a # inside a word, as in data.jsonl#500, as the start of a comment.
            words = [*takewhile(lambda word: not word.startswith("#"), shlex.split(line))]
        except ValueError:
            continue
        for number in range(1, len(words)):
            if words[number - 1] == "swift" and words[number] in _COMMANDS:
                implied = {"rlhf_type": "dpo"} if words[number] == "rlhf" else {}
                return implied | _options(words[number + 1 :]), _processes(words[:number])
    raise ConfigError(f"{origin}: has no command swift {', '.join(_COMMANDS)}")


def _options(words: Sequence[str]) -> dict[str, Any]:
    """`--key value`, `--key=value` and `--key a b` as values, a list for several; a key alone is true.

    `$(...)` is one value, which is never a number.
    """
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if values and values[-1].startswith("$(") and not values[-1].endswith(")"):
            values[-1] += f" {word}"
        elif word.startswith("--"):
            key, equals, value = word.removeprefix("--").partition("=")
            values = found.setdefault(key, [])
            if equals:
                values.append(value)
        else:
            values.append(word)
    return {key: True if not v else v[0] if len(v) == 1 else v for key, v in found.items()}


def _processes(words: Sequence[str]) -> int | None:
    numbers = [word.partition("=")[2] for word in words if word.startswith("NPROC_PER_NODE=")]
    return int(numbers[-1]) if numbers and numbers[-1].isdigit() and int(numbers[-1]) else None
