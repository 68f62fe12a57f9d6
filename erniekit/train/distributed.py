"""Checks the parallel degrees of a configuration against the model and the number of processes."""

from __future__ import annotations

from erniekit.config import Config
from erniekit.display.text import counted
from erniekit.distributed.context import DistributedContext
from erniekit.distributed.mesh import connect, local_mesh
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.distributed.worker import Worker
from erniekit.errors import ConfigError
from erniekit.models.config import ErnieConfig


def plan_parallel_dims(config: Config, processes: int) -> ParallelDims:
    """`fit_parallel_dims` with the `config.json` of the model."""
    return fit_parallel_dims(config, ErnieConfig.from_dir(config.model.directory), processes)


def fit_parallel_dims(config: Config, model: ErnieConfig, processes: int) -> ParallelDims:
    """The parallel degrees of a run with `processes` processes.

    Raises ConfigError if the degrees in `parallel` do not fit the processes, the model or train.rows_per_step.
    """
    parallel = config.parallel
    dims = ParallelDims(processes, parallel.expert, parallel.context)
    dims.validate(
        [] if model.moe is None else [model.moe.num_experts] * model.moe.num_modalities,
        (model.num_attention_heads, model.num_key_value_heads),
    )
    rows, who = config.num_rows(dims.data), _ranks_text(dims.context)
    if rows % dims.data:
        below = max(1, rows // dims.data)
        raise ConfigError(
            f"train.rows_per_step is {rows}, which is not a multiple of {dims.data}, the number of {who} in this run "
            f"(--devices, or --gpus of a plan): use {below * dims.data}, {(below + 1) * dims.data} or another multiple "
            f"of {dims.data}, or set train.rows_per_step: null and train.tokens_per_step: "
            f"{rows * config.data.max_length}, which fits any number"
        )
    return dims


def fix_rows(config: Config, dims: ParallelDims, saved: int | None = None) -> Config:
    """The configuration with train.rows_per_step as a number, for a run with these degrees.

    saved: the number in the checkpoint to resume from, which is used if train.rows_per_step is not set. Raises
    ConfigError if it does not divide evenly among the ranks.
    """
    if saved is None or config.train.rows_per_step is not None:
        return config.with_rows(config.num_rows(dims.data))
    if saved % dims.data:
        raise ConfigError(
            f"the run has {counted(saved, 'packed sequence')} per step, which is not a multiple of {dims.data}, "
            f"the number of {_ranks_text(dims.context)} that would resume it: use another number of --devices"
        )
    return config.with_rows(saved)


def _ranks_text(context: int) -> str:
    return "processes" if context == 1 else f"groups of {context} processes"


def check_same_model(config: Config, dist: DistributedContext) -> None:
    """Raise ConfigError if machines have downloaded different commits of the model. All processes call it."""
    found = dist.all_gather_object(config.model.revision)
    commits = {commit or "a directory" for commit in found}
    if len(commits) > 1:
        raise ConfigError(
            f"the machines of this run have different commits of {config.model.path}: {', '.join(sorted(commits))}. "
            "Set model.revision to one of them"
        )


def init_distributed(config: Config, dims: ParallelDims, worker: Worker | None) -> DistributedContext:
    """Connect the processes of the run; see `connect`. worker: None for a single process."""
    return DistributedContext(
        local_mesh() if worker is None else connect(dims, timeout=config.parallel.timeout)
    )
