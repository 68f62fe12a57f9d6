"""The parallel degrees that a configuration asks for, checked against the model and the processes of the run."""

from __future__ import annotations

from erniekit.config import Config
from erniekit.distributed.context import Team
from erniekit.distributed.mesh import connect, local_mesh
from erniekit.distributed.parallel_dims import Layout
from erniekit.distributed.worker import Worker
from erniekit.errors import ConfigError
from erniekit.models.config import ErnieConfig


def plan_layout(config: Config, processes: int) -> Layout:
    """How so many processes would share the run. Reads the model's config.json. Raises as `fit_layout` does."""
    return fit_layout(config, ErnieConfig.from_dir(config.model.path), processes)


def fit_layout(config: Config, model: ErnieConfig, processes: int) -> Layout:
    """How so many processes would share a run of that architecture.

    Raises ConfigError where the degrees of `parallel` do not fit the processes, the model or train.rows_per_step.
    """
    parallel, rows = config.parallel, config.train.rows_per_step
    layout = Layout(processes, parallel.expert, parallel.context)
    layout.validate(
        [] if model.moe is None else [model.moe.num_experts] * model.moe.num_modalities,
        (model.num_attention_heads, model.num_key_value_heads),
    )
    if rows % layout.data:
        who = "processes" if layout.context == 1 else f"groups of {layout.context} processes"
        below = max(1, rows // layout.data)
        raise ConfigError(
            f"train.rows_per_step is {rows}, which does not divide among the {layout.data} {who} of this run "
            f"(--devices): use {below * layout.data}, {(below + 1) * layout.data} or another multiple of {layout.data}"
        )
    return layout


def assemble(config: Config, worker: Worker | None) -> Team:
    """The team that the configuration asks for. worker: None where this process was started alone.

    Raises ConfigError as `plan_layout` does.
    """
    layout = plan_layout(config, 1 if worker is None else worker.world)
    return Team(local_mesh() if worker is None else connect(layout, timeout=config.parallel.timeout))
