"""`erniekit plan`: memory and time of a run, on any kind and number of GPUs."""

import json
from typing import Annotated

import typer

from erniekit.cli.train_options import DEFAULT_GPU, ConfigFile, GpuKind, Gpus, Overrides


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpus: Gpus = 1,
    gpu: GpuKind = DEFAULT_GPU,
    search: Annotated[
        bool, typer.Option("--search", help="Also search for the fastest layouts that fit these GPUs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict memory and time of a run from the shape of its model.

    No weights, data or GPUs are needed: the shapes of the released models are known by name. If the run does not fit,
    the smallest changes that make it fit are printed, cheapest first. docs/plan.md explains the figures and compares
    them with measurements.

    Examples:

    \b
      erniekit plan run.yaml --gpus 8 --gpu h100-80gb
      erniekit plan run.yaml --gpus 8 --gpu a100-40gb --search
      erniekit plan run.yaml model.quantize=int4 --gpu rtx4090-24gb --json
    """
    from erniekit.config import load_config
    from erniekit.train.planner.command import plan_job
    from erniekit.train.planner.gpus import find_gpu
    from erniekit.train.planner.report import plan_json, plan_lines

    kind = find_gpu(gpu)
    job = plan_job(load_config(config, overrides or []), gpus, kind)
    if as_json:
        typer.echo(json.dumps(plan_json(job, kind, search=search), indent=2))
        return
    typer.echo("\n".join(plan_lines(job, kind, search=search)))
