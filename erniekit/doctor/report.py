"""Lines of results for a terminal, and the file for a bug report, without secrets."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from erniekit.doctor.check import Check, Result
from erniekit.errors import ConfigError

# The variables that change what erniekit, Paddle, CUDA and NCCL do.
_SHOWN = re.compile(
    r"(CUDA|NCCL|GLOO|FLAGS|PADDLE|GLOG|OMP|MKL|TRITON|SLURM|HF|XDG)_\w+|NVIDIA_VISIBLE_DEVICES|LD_LIBRARY_PATH|PYTHONPATH"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_LOGIN = re.compile(r"//[^/@\s]+@")
_HIDDEN = "***"
_SHORTEST_SECRET = 6


def result_line(check: Check, result: Result) -> str:
    """One line: status, name, detail."""
    return f"  {result.status:<8} {check.name}: {result.detail}"


def summary_line(results: Sequence[Result]) -> str:
    """The numbers of results by status."""
    counts = Counter(result.status for result in results)
    return (
        f"{counts['ok']} ok, {counts['warning']} with a warning, {counts['failed']} failed, "
        f"{counts['skipped']} not checked"
    )


def write_report(file: Path, results: Sequence[tuple[Check, Result]], environment: Mapping[str, str]) -> None:
    """Write all results, tracebacks of failures and the environment, without secrets. Raises ConfigError."""
    lines = ["erniekit doctor", ""]
    for number, (check, result) in enumerate(results):
        if number == 0 or check.section != results[number - 1][0].section:
            lines.append(check.section)
        lines.append(result_line(check, result))
        lines += [f"    {line}" for line in result.trace.splitlines()]
    lines += ["", summary_line([result for _, result in results]), "", "environment"]
    lines += [f"  {name}={environment[name]}" for name in sorted(environment) if _is_shown(name)]
    try:
        file.write_text(without_secrets("\n".join(lines) + "\n", environment), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror or error}") from error


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """A text without values of secret variables, logins in URLs, and the name of the home directory."""
    for name, value in environment.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, _HIDDEN)
    text = _LOGIN.sub(f"//{_HIDDEN}@", text)
    home = environment.get("HOME", "")
    return text.replace(home, "~") if len(home) > len(os.sep) else text


def _is_shown(name: str) -> bool:
    return _SHOWN.fullmatch(name) is not None and not _SECRET.search(name)
