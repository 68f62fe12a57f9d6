"""Options of `erniekit train`, and of other commands that read the file of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(help="YAML file of the run.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that win over the file, such as data.max_length=4096; values are YAML.",
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue from the newest complete checkpoint in train.output_dir; start at the first step if there "
        "is none yet. --resume auto is the same.",
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="LIST",
        help="One process for each: numbers of GPUs (0,1,2,3), or cpu:4 for four on the CPU. "
        "Default: every GPU that is seen.",
        show_default=False,
    ),
]
Nodes = Annotated[
    int,
    typer.Option("--nodes", metavar="N", help="Machines; each runs this command.", show_default=False),
]
NodeRank = Annotated[
    int | None,
    typer.Option(
        "--node-rank",
        metavar="R",
        help="With --nodes: which of them this machine is, from 0.",
        show_default=False,
    ),
]
Master = Annotated[
    str | None,
    typer.Option(
        "--master",
        metavar="HOST:PORT",
        help="With --nodes: address of machine 0, and a free port there.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything, print the configuration, the data and the plan; train nothing.",
    ),
]
NoWeights = Annotated[
    bool,
    typer.Option(
        "--no-weights",
        help="With --dry-run: check the configuration alone; model and data need not exist.",
    ),
]


def resume_as_flag(arguments: Sequence[str]) -> list[str]:
    """`--resume auto` and `--resume=auto` as `--resume`.

    An option with an optional value would take the configuration file or an override after it for its value.
    """
    previous = ["", *arguments]
    return [
        "--resume" if argument == "--resume=auto" else argument
        for before, argument in zip(previous, arguments, strict=False)
        if (before, argument) != ("--resume", "auto")
    ]
