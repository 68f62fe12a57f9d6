"""Runs of small models for tests of plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erniekit.config import Config
from erniekit.create.shapes import shape_config
from erniekit.models.config import ErnieConfig
from erniekit.train.planner.job import Job, with_settings

MEDIA = (
    "im_patch_id", "image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id"
)  # fmt: skip
MIB = 2**20


def job(
    shape: str, processes: int, device_bytes: int, sizes: list[str] | None = None, **settings: Any
) -> Job:
    """A run of a shape with other sizes. settings: with two underscores for the dot of a key."""
    model = ErnieConfig.from_json(shape_config(shape, sizes or []) | dict.fromkeys(MEDIA, 0))
    config = Config.model_validate(
        {"model": {"path": "m"}, "data": {"train": "t.jsonl"}, "train": {"output_dir": str(Path("o"))}}
    )
    chosen = {key.replace("__", "."): value for key, value in settings.items()}
    return Job(with_settings(config, chosen), model, processes, device_bytes)
