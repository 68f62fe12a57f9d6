"""`erniekit train`: fine-tunes a model as a configuration says."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings that win over the file, such as optimizer.learning_rate=1e-4; values are YAML.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue from the newest complete checkpoint in train.output_dir."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, print the configuration, the data and the plan; train nothing.",
        ),
    ] = False,
    no_weights: Annotated[
        bool,
        typer.Option(
            "--no-weights",
            help="With --dry-run: check the configuration alone; model and data need not exist.",
        ),
    ] = False,
) -> None:
    """Fine-tune a model as a YAML file says.

    The run's directory (train.output_dir) receives the resolved configuration, a log, TensorBoard files and
    checkpoints. Ctrl-C finishes the step, saves, and says how to resume.

    Examples:

    \b
      erniekit train run.yaml --dry-run
      erniekit train run.yaml optimizer.learning_rate=1e-4 data.train=[a.jsonl,b.jsonl]
      erniekit train run.yaml --resume
    """
    if no_weights and not dry_run:
        raise typer.BadParameter("it is only for --dry-run", param_hint="--no-weights")

    from erniekit.config import load_config

    settings = load_config(config, overrides or [])

    from erniekit.train.job import run_training

    raise typer.Exit(run_training(settings, resume=resume, dry_run=dry_run, no_weights=no_weights))
