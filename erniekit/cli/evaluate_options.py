"""Options of `erniekit eval`. What is None by default stands as the run says, where one is named."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.config import choices

Model = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL",
        help="An export, a checkpoint, or a run's output directory (its newest checkpoint; RUN/best: its best); or the "
        "YAML file of a run. May be left out with --config.",
        show_default=False,
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Chats, each ending with its reference answer; repeat it for more files. Default: data.eval of --config.",
        show_default=False,
    ),
]
Run = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="RUN.yaml",
        help="A run, whose output directory, data.eval and settings count; other options win over it.",
    ),
]
SampleFormat = Annotated[
    choices.DataFormat | None,
    typer.Option("--format", help="Format of the samples. Default: the run's, else auto."),
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N samples.")]
OnError = Annotated[
    choices.OnError | None,
    typer.Option("--on-error", help="A sample that cannot be used stops (raise) or is counted (skip)."),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metrics",
        metavar="NAMES",
        help=f"{', '.join(choices.METRICS)}, with commas between; auto: those that fit the references. "
        "exact_match is always there. Default: the run's (eval.metrics), else auto.",
    ),
]
Generate = Annotated[
    bool, typer.Option("--generate/--no-generate", help="Generate answers, or compute the loss only.")
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        min=1,
        help="Tokens after which an answer is cut off. Default: the run's (eval.max_new_tokens), else 64.",
        show_default=False,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        min=0.0,
        help="0: always the most probable token. Default: the run's (eval.temperature), else 0.",
        show_default=False,
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch",
        metavar="N",
        min=1,
        help="Answers generated at one time. Default: the run's (eval.batch), else 128.",
        show_default=False,
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to this file, as JSON.")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="Write every answer to this file, as JSON lines."),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page with pictures and differences to this file."),
]
Min = Annotated[
    list[str] | None,
    typer.Option(
        "--min",
        metavar="METRIC=SHARE",
        help="Exit with 1 if the metric is below, as in token_f1=0.8; repeat it for more.",
    ),
]
MinExactMatch = Annotated[
    float | None,
    typer.Option(
        "--min-exact-match",
        metavar="SHARE",
        min=0.0,
        max=1.0,
        help="The same as --min exact_match=SHARE; 0.95 is 95%.",
    ),
]
