"""One check of the doctor, its result, and running it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from erniekit.errors import ErnieKitError

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Result:
    """The outcome of a check. detail: figures, or the reason; trace: of an unexpected exception."""

    status: Status
    detail: str
    trace: str = ""


class Check(NamedTuple):
    """A check. An exception that `run` raises is a failure."""

    section: str
    name: str
    run: Callable[[], Result]


def ok(detail: str) -> Result:
    """Nothing is wrong."""
    return Result("ok", detail)


def warning(detail: str) -> Result:
    """Training works, but is slow or has limits."""
    return Result("warning", detail)


def failed(detail: str) -> Result:
    """Training does not work, or gives wrong results."""
    return Result("failed", detail)


def skipped(reason: str) -> Result:
    """The check does not apply to this machine."""
    return Result("skipped", reason)


def run_check(check: Check) -> Result:
    """The result of a check; for an exception, its first line."""
    try:
        return check.run()
    except ErnieKitError as error:
        return failed(str(error))
    except Exception as error:  # any exception is a finding
        first = (str(error).strip() or "without a message").splitlines()[0]
        return Result("failed", f"{type(error).__name__}: {first}", traceback.format_exc())
