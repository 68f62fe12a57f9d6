"""Options of `erniekit train` and of other commands that read the YAML file of a run."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.models import OptionInfo

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override a setting, such as data.max_length=4096. Values are YAML.",
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue from the newest complete checkpoint in train.output_dir, or start if there is none. "
        "--resume auto is the same.",
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="LIST",
        help="Devices, one process each: GPU indices (0,1,2,3), or cpu:4 for four CPU processes. "
        "Default: all visible GPUs.",
        show_default=False,
    ),
]
Nodes = Annotated[
    int,
    typer.Option(
        "--nodes", metavar="N", help="Number of machines. Run the same command on each.", show_default=False
    ),
]
NodeRank = Annotated[
    int | None,
    typer.Option(
        "--node-rank",
        metavar="R",
        help="With --nodes: index of this machine, from 0.",
        show_default=False,
    ),
]
Master = Annotated[
    str | None,
    typer.Option(
        "--master",
        metavar="HOST:PORT",
        help="With --nodes: address of machine 0 and a free port on it.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything and print the settings that differ from the defaults, data statistics and the training "
        "plan, without training. Does not download the weights of a Hub model.",
    ),
]
NoWeights = Annotated[
    bool,
    typer.Option(
        "--no-weights",
        help="With --dry-run: download nothing. A released model is checked by its known shape, and data may be "
        "missing.",
    ),
]
ShowAll = Annotated[
    bool,
    typer.Option(
        "--all", help="With --dry-run: print every setting, not only those that differ from the defaults."
    ),
]

DEFAULT_GPU = "h100-80gb"
Force = Annotated[
    bool, typer.Option("--force", help="Start even if the run cannot fit according to the memory plan.")
]
Gpus = Annotated[int, typer.Option("--gpus", metavar="N", min=1, help="Number of GPUs, one process each.")]
GpuKind = Annotated[
    str,
    typer.Option("--gpu", metavar="NAME", help="Kind of GPU, such as h200-141gb, h100-80gb or l40s-48gb."),
]
PlannedGpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        metavar="N",
        min=1,
        help="With --dry-run: plan memory and time for N GPUs of any kind. See erniekit plan.",
        show_default=False,
    ),
]
PlannedGpuKind = Annotated[
    str | None,
    typer.Option(
        "--gpu", metavar="NAME", help="With --gpus: kind of GPU, such as h100-80gb.", show_default=False
    ),
]


_DEVICES = "--devices 0,1,2,3 names the GPUs, one process each"
_LAUNCHERS = {
    **dict.fromkeys(("--gpus", "--num-gpus", "--num-processes", "--nproc-per-node"), _DEVICES),
    "--nnodes": "--nodes is the number of machines",
    "--master-addr": "--master HOST:PORT is the address of machine 0",
}
"""Options of other launchers."""


def explain_option(arguments: Sequence[str], command: Callable[..., Any]) -> str | None:
    """For arguments with a setting or another launcher's option instead of one of the command's, such as
    --learning_rate 1e-4.

    None without one, and for a misspelled option, which the parser explains.
    """
    annotations = (parameter.annotation for parameter in inspect.signature(command).parameters.values())
    options = [info for each in annotations for info in get_args(each)[1:] if isinstance(info, OptionInfo)]
    # In an Annotated, typer takes the first name for the default.
    known = ["--help", *(str(name) for info in options for name in (info.default, *(info.param_decls or ())))]
    for argument in arguments:
        given, _, value = argument.partition("=")
        option = given.replace("_", "-")
        if not given.startswith("--") or difflib.get_close_matches(option, known, n=1, cutoff=0.8):
            continue
        if option in _LAUNCHERS:
            return f"there is no option {given}: {_LAUNCHERS[option]}"
        from erniekit.config.hints import KNOWN_KEYS, meant

        name = given.removeprefix("--").replace("-", "_")
        if name in KNOWN_KEYS:
            return f"there is no option {given}: settings are KEY=VALUE, here {name}={value or 'VALUE'}"
        return f"there is no option {given}, and settings are KEY=VALUE: {meant(tuple(name.split('.')))}"
    return None


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
