"""Configurations of ERNIEKit as converted, and loaded from the file that is written."""

from pathlib import Path
from typing import Any

from erniekit.config import Config, load_config
from erniekit.config.convert.convert import Conversion, convert
from erniekit.config.convert.write import config_text
from erniekit.config.others import erniekit
from erniekit.config.others.table import NoEquivalent


def loaded(conversion: Conversion, directory: Path) -> Config:
    """The configuration that the written file holds."""
    path = directory / "new.yaml"
    path.write_text(config_text(conversion, "old.yaml"), encoding="utf-8")
    return load_config(path)


def converted(values: dict[str, Any], directory: Path, gpus: int | None = None) -> Config:
    """The configuration from values of ERNIEKit."""
    found = convert(values, erniekit.variant(values), gpus)
    return loaded(found, directory)


def advice(conversion: Conversion) -> dict[str, str]:
    """What to do, by old key."""
    return {
        key: item.outcome.advice
        for item in conversion.unconverted
        for key in item.old
        if isinstance(item.outcome, NoEquivalent)
    }


DATA = {"stage": "SFT", "model_name_or_path": "m", "train_dataset_path": "a.jsonl"}
