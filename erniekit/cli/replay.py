"""`erniekit replay`: recomputes the rows that a run saved."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.cli.options import Device, Threads


def replay(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Directory of a step, such as RUN/nonfinite/step-000012.",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="Checkpoint to use. Default: the newest one before the step, or the base model.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Recompute the saved rows of a step, to find the source of NaN.

    A run saves the rows (packed sequences) of a step with a loss or gradient that is NaN or infinite. Prints loss and
    gradient norm of each row and of each sample alone, and the first module with an output that is not finite. Runs in
    one process, without dropout.

    Examples:

    \b
      erniekit replay runs/digits/nonfinite/step-000012
      erniekit replay runs/digits/nonfinite/step-000012 --checkpoint runs/digits/checkpoint-000010
    """
    from erniekit.train.replay import replay_rows

    replay_rows(directory, checkpoint, device=device, threads=threads, log=typer.echo)
