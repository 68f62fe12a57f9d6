"""`erniekit replay`: computes rows that a run has saved again."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.cli.options import Device, Threads


def replay(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Saved rows of a step, such as RUN/nonfinite/step-000012.",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="Checkpoint of the run to compute with. Default: the newest one before the step, or the base model.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Compute saved rows of a run again, to find what is not finite.

    A run saves the rows of a step with a loss or gradient that is NaN or infinite. Prints loss and gradient norm of
    each row and of each sample alone, and the first module with an output that is not finite. One process computes,
    without dropout.

    Examples:

    \b
      erniekit replay runs/digits/nonfinite/step-000012
      erniekit replay runs/digits/nonfinite/step-000012 --checkpoint runs/digits/checkpoint-000010
    """
    from erniekit.train.replay import replay_rows

    replay_rows(directory, checkpoint, device=device, threads=threads, log=typer.echo)
