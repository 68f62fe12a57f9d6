"""Mutated JSON files of model directories."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erniekit.config import DataConfig
from erniekit.data.encode.limits import _named_ids
from erniekit.data.encode.tokenizer import media_token_ids, stop_token_ids
from erniekit.data.media.item import MediaSpec
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import parameter_specs
from tests.fuzz.driver import mutated_bytes, mutated_value, put
from tests.model_configs import DENSE, FLAT, MOE, nested_config

_PROCESSOR = {
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "patch_size": 14,
    "merge_size": 2,
    "size": {"shortest_edge": 3136, "longest_edge": 4842768},
    "do_resize": True,
    "rescale_factor": 1 / 255,
}
_VIDEO = {
    "fps": 2,
    "min_frames": 16,
    "max_frames": 180,
    "size": {"shortest_edge": 3136, "longest_edge": 937664},
}


def model_files(rng: random.Random, directory: Path) -> None:
    """config.json, the files of the processor and generation_config.json."""
    files: dict[str, Mapping[str, Any]] = {
        "config.json": rng.choice([DENSE, MOE, FLAT, nested_config()]),
        "preprocessor_config.json": _PROCESSOR,
        "video_preprocessor_config.json": _VIDEO,
        "generation_config.json": {"eos_token_id": [2, 3], "pad_token_id": 0},
    }
    changed = rng.choice(list(files))
    for name, content in files.items():
        value: object = content
        if name == changed:
            for _ in range(rng.randint(1, 3)):
                value = mutated_value(rng, value)
        text = json.dumps(value).encode()
        if name == changed and rng.random() < 0.2:
            text = mutated_bytes(rng, text)
        put(directory / name, text)
    config = ErnieConfig.from_dir(directory)
    assert sum(spec.size > 0 for spec in parameter_specs(config)) < 2_000_000
    media_token_ids(directory)
    stop_token_ids(directory, None)
    list(_named_ids(directory))
    if config.vision is not None:
        MediaSpec.from_checkpoint(directory, DataConfig.without_sources())
