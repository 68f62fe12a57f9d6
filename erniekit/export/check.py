"""The result of a check of a model directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

INSTALL_TORCH = "in erniekit's checkout: pip install -e '.[verify]'"
_SHOWN = 4


@dataclass(frozen=True)
class Check:
    """The result of one check. A note is informative and not a failure; a line of a table is printed as it is."""

    status: Literal["ok", "note", "FAIL", "table"]
    text: str

    def __str__(self) -> str:
        return self.text if self.status == "table" else f"{self.status:<4} {self.text}"


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
