"""Options of `erniekit eval`. An option that defaults to None takes the value of the run's config, if one is named."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.config import choices

Model = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL",
        help="A base model (a directory, or a repository of the Hub), an export, a checkpoint, the output "
        "directory of a run (its newest checkpoint; RUN/best: its best one), or the config of a run. Optional with "
        "--config.",
        show_default=False,
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Chats that end with a reference answer. Can be repeated. Default: data.eval of --config.",
        show_default=False,
    ),
]
Run = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="The config of a run: its output directory, data.eval and settings. Other options override it.",
    ),
]
OnError = Annotated[
    choices.OnError | None,
    typer.Option(
        "--on-error", help="Samples that cannot be used: stop (raise), or skip and count them (skip)."
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metrics",
        metavar="NAMES",
        help=f"{', '.join(choices.METRICS)}. Comma-separated; auto: those that fit the references. "
        "exact_match is always included. Default: the run's (eval.metrics), else auto.",
    ),
]
Generate = Annotated[
    bool, typer.Option("--generate/--no-generate", help="Generate answers, or only compute the loss.")
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        min=1,
        help="Limit on the tokens of an answer. Default: the run's (eval.max_new_tokens), else 64.",
        show_default=False,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        min=0.0,
        help="0: greedy decoding. Default: the run's (eval.temperature), else 0.",
        show_default=False,
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch",
        metavar="N",
        min=1,
        help="Batch size of generation. Default: the run's (eval.batch), else 128.",
        show_default=False,
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the metrics to this file, as JSON.")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="Write every answer to this file, as JSON lines."),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write an HTML page of the answers and their differences to this file.",
    ),
]
Min = Annotated[
    list[str] | None,
    typer.Option(
        "--min",
        metavar="METRIC=SHARE",
        help="Exit with status 1 if a metric is lower, such as token_f1=0.8. Can be repeated.",
    ),
]
MinExactMatch = Annotated[
    float | None,
    typer.Option(
        "--min-exact-match",
        metavar="SHARE",
        min=0.0,
        max=1.0,
        help="Same as --min exact_match=SHARE; 0.95 is 95%.",
    ),
]
