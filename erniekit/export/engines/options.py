"""Which engines a model directory is compared with, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from erniekit.config.choices import Engine


@dataclass(frozen=True)
class EngineOptions:
    """What to compare with which engines.

    `source`: the model that Paddle computes, None: the directory itself; `python`: of the engine's environment, None:
    that of `make engines`; `trust_remote_code`: whether the engine may run the directory's Python files; `workarounds`:
    whether known faults of the engine are corrected in its memory before it is compared.
    """

    engines: tuple[Engine, ...]
    source: Path | None = None
    python: Path | None = None
    trust_remote_code: bool = False
    workarounds: bool = True
