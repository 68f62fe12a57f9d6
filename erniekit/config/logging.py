"""The section `log`, with a section for each service that shows metrics of runs."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from erniekit.config import choices
from erniekit.config.section import BOOLEANS, Positive, Section, Text, TextList


def as_tracker(value: Any) -> Any:
    """Expands a short form of the section: true means the defaults, a string is the project, false means null."""
    if isinstance(value, str):
        value = BOOLEANS.get(value.lower(), value)
    if isinstance(value, bool):
        return {} if value else None
    return {"project": value} if isinstance(value, str) else value


class TrackerConfig(Section):
    """A service that shows the metrics of runs."""

    project: Text = Field("erniekit", description="Project of the run.")
    name: Text | None = Field(None, description="Name of the run. null: the name of train.output_dir.")
    mode: choices.TrackerMode = Field(
        "online",
        description="online: send metrics to the service, unless its environment variables say otherwise; offline: "
        "only write files to train.output_dir, for `wandb sync` or `swanlab sync` to send later.",
    )
    tags: TextList = Field([], description="Tags of the run.")


class WandbConfig(TrackerConfig):
    """Weights & Biases. The package wandb must be installed."""

    entity: Text | None = Field(None, description="User or team. null: the default of the account.")
    group: Text | None = Field(None, description="Group of runs.")


class SwanlabConfig(TrackerConfig):
    """SwanLab. The package swanlab must be installed."""

    workspace: Text | None = Field(
        None, description="User or organization. null: the default of the account."
    )


class LogConfig(Section):
    """Logging. log.jsonl in the run's directory always has all metrics."""

    every: Positive = Field(1, description="Steps between log lines.")
    tensorboard: bool = Field(True, description="Also write TensorBoard files to the run's directory.")
    report: bool = Field(
        True,
        description="Write report.html to the run's directory when the run ends or is interrupted: curves, "
        "configuration, data, answers.",
    )
    router_detail: bool = Field(
        False,
        description="Log router metrics per layer and the share of each expert. false: only minimum, mean and maximum "
        "over the layers.",
    )
    wandb: Annotated[WandbConfig | None, BeforeValidator(as_tracker)] = Field(
        None,
        description="Also log to Weights & Biases: true, the name of a project, or a section. A resumed run continues "
        "the same run there. null: off.",
    )
    swanlab: Annotated[SwanlabConfig | None, BeforeValidator(as_tracker)] = Field(
        None,
        description="Also log to SwanLab: true, the name of a project, or a section. A resumed run continues the same "
        "experiment there. null: off.",
    )
