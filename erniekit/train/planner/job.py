"""The input of the planner: a configuration, the architecture of its model, and the devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from erniekit.checkpoint.resize import NO_CHANGES, ModelChanges
from erniekit.config import Config
from erniekit.config.rules import router_settings
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.errors import ConfigError
from erniekit.models.config import ErnieConfig
from erniekit.train.activations import RowShape, full_row
from erniekit.train.distributed import fit_parallel_dims
from erniekit.train.flops import RowCounts
from erniekit.train.memory import TrainingPlan, plan_training
from erniekit.train.selection import ParameterSelection, select_parameters

Settings = Mapping[str, Any]
"""Values by dotted key, such as {"train.recompute": "layers"}."""


@dataclass(frozen=True)
class Job:
    """A run to plan. No file is read.

    model: the architecture of the checkpoint; changes: to this architecture; dtype: "bfloat16" or "float32";
    device_bytes: memory of each device; row: the largest packed sequence of the data, None if the data is not known;
    on_cpu: with the kernels of a CPU; rates: a cache of FLOPs by `selection_key`, shared by jobs with other settings.
    """

    config: Config
    model: ErnieConfig
    processes: int
    device_bytes: int
    dtype: str = "bfloat16"
    changes: ModelChanges = NO_CHANGES
    row: RowShape | None = None
    on_cpu: bool = False
    rates: dict[str, tuple[RowCounts, RowCounts]] = field(default_factory=dict, repr=False, compare=False)
    _selections: dict[str, ParameterSelection] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def dims(self) -> ParallelDims:
        """The parallel degrees. Raises ConfigError if they do not fit the processes, the model or the rows."""
        return fit_parallel_dims(self.config, self.model, self.processes)

    @property
    def architecture(self) -> ErnieConfig:
        """The architecture of the trained model."""
        return self.changes.apply(self.model)

    @property
    def selected(self) -> ParameterSelection:
        """The parameters. Raises ConfigError as `select_parameters` does."""
        key = self.selection_key
        if key not in self._selections:
            self._selections[key] = select_parameters(self.config, self.model, self.dtype, self.changes)
        return self._selections[key]

    @property
    def selection_key(self) -> str:
        """The settings on which the parameters depend."""
        config = self.config
        return f"{config.lora.model_dump_json()} {config.model.freeze} {router_settings(config)}"

    @property
    def largest_row(self) -> RowShape:
        """The largest packed sequence of the data; of any data if it is not known."""
        full = full_row(self.config, self.architecture)
        return full if self.row is None else self.row.clipped(full)

    @cached_property
    def plan(self) -> TrainingPlan:
        """The memory of each process. Raises ConfigError if the settings do not fit the model or the processes."""
        selected, dims = self.selected, self.dims
        return plan_training(
            self.config,
            self.architecture,
            self.dtype,
            selected,
            dims,
            self.device_bytes,
            self.largest_row,
            on_cpu=self.on_cpu,
        )

    @property
    def fits(self) -> bool:
        """Whether the memory plan fits the device."""
        return self.plan.memory.fits(self.device_bytes)

    def changed(self, settings: Settings) -> Job:
        """The same run with other settings. Raises ConfigError if they contradict others."""
        return replace(self, config=with_settings(self.config, settings))


def with_settings(config: Config, settings: Settings) -> Config:
    """Change settings of a configuration. Raises ConfigError if they contradict others."""
    values = config.model_dump()
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(str(problem["msg"]) for problem in error.errors())) from None


def overrides(settings: Settings) -> list[str]:
    """Settings as arguments of the command line."""
    return [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()
    ]
