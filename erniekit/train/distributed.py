"""The parallel degrees that a configuration asks for, checked against the model and the processes of the run."""

from __future__ import annotations

from erniekit.config import Config
from erniekit.distributed.context import DistributedContext
from erniekit.distributed.mesh import connect, local_mesh
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.distributed.worker import Worker
from erniekit.errors import ConfigError
from erniekit.models.config import ErnieConfig


def plan_parallel_dims(config: Config, processes: int) -> ParallelDims:
    """How so many processes would share the run. Reads the model's config.json. Raises as `fit_parallel_dims` does."""
    return fit_parallel_dims(config, ErnieConfig.from_dir(config.model.path), processes)


def fit_parallel_dims(config: Config, model: ErnieConfig, processes: int) -> ParallelDims:
    """How so many processes would share a run of that architecture.

    Raises ConfigError where the degrees of `parallel` do not fit the processes, the model or train.rows_per_step.
    """
    parallel, rows = config.parallel, config.train.rows_per_step
    dims = ParallelDims(processes, parallel.expert, parallel.context)
    dims.validate(
        [] if model.moe is None else [model.moe.num_experts] * model.moe.num_modalities,
        (model.num_attention_heads, model.num_key_value_heads),
    )
    if rows % dims.data:
        who = "processes" if dims.context == 1 else f"groups of {dims.context} processes"
        below = max(1, rows // dims.data)
        raise ConfigError(
            f"train.rows_per_step is {rows}, which does not divide among the {dims.data} {who} of this run "
            f"(--devices): use {below * dims.data}, {(below + 1) * dims.data} or another multiple of {dims.data}"
        )
    return dims


def init_distributed(config: Config, worker: Worker | None) -> DistributedContext:
    """The team that the configuration asks for. worker: None where this process was started alone.

    Raises ConfigError as `plan_parallel_dims` does.
    """
    dims = plan_parallel_dims(config, 1 if worker is None else worker.world)
    return DistributedContext(
        local_mesh() if worker is None else connect(dims, timeout=config.parallel.timeout)
    )
