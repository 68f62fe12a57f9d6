"""Whether the libraries of trackers are installed."""

from __future__ import annotations

import importlib.util

from erniekit.config.logging import LogConfig
from erniekit.errors import ConfigError


def check_installed(log: LogConfig) -> None:
    """Raise ConfigError if the library of a tracker is not installed."""
    for name, settings in (("wandb", log.wandb), ("swanlab", log.swanlab)):
        if settings is not None and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"log.{name}: the package {name} is not installed. Install it: pip install {name}"
            )
