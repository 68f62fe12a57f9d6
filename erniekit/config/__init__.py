"""The configuration of a run: schema, rules, and reading from YAML and the command line."""

from erniekit.config.config import Config
from erniekit.config.data import DataConfig, SourceConfig
from erniekit.config.evaluation import EvalConfig
from erniekit.config.load import dump_config, load_config
from erniekit.config.logging import LogConfig
from erniekit.config.model import LoraConfig, ModelConfig
from erniekit.config.schema import (
    CheckpointConfig,
    LossConfig,
    OptimizerConfig,
    ParallelConfig,
    ParameterGroup,
    ScheduleConfig,
    TrainConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LogConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ParameterGroup",
    "ScheduleConfig",
    "SourceConfig",
    "TrainConfig",
    "dump_config",
    "load_config",
]
