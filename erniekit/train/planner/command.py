"""The job of a configuration, without weights and without devices (`erniekit plan`)."""

from __future__ import annotations

from pathlib import Path

from erniekit.checkpoint.download import cached_model, names_repository
from erniekit.config import Config
from erniekit.create.shapes import released_architecture
from erniekit.errors import ConfigError
from erniekit.models.config import ErnieConfig
from erniekit.train.planner.gpus import Gpu
from erniekit.train.planner.job import Job


def find_architecture(config: Config) -> ErnieConfig:
    """The architecture of model.path: from config.json in a directory or the Hub's cache, or by the name of a release.

    Raises ConfigError for an unknown name, CheckpointError for a config.json of another model family.
    """
    path = config.model.path
    if (Path(path) / "config.json").is_file():
        return ErnieConfig.from_dir(path)
    if names_repository(path):
        cached = cached_model(path, config.model.revision, weights=False)
        if cached is not None and (cached.directory / "config.json").is_file():
            return ErnieConfig.from_dir(cached.directory)
    found = released_architecture(path)
    if found is None:
        raise ConfigError(
            f"model.path: {path} has no config.json here, and is not the name of a release such as "
            "baidu/ERNIE-4.5-21B-A3B-PT. `erniekit download REPO --no-weights` fetches one"
        )
    return found


def plan_job(config: Config, gpus: int, gpu: Gpu) -> Job:
    """The job of a configuration on a number of GPUs of one kind, in bfloat16 unless model.dtype is float32.

    Raises ConfigError as `find_architecture`.
    """
    dtype = "float32" if config.model.dtype == "float32" else "bfloat16"
    return Job(config, find_architecture(config), gpus, gpu.memory, dtype)
