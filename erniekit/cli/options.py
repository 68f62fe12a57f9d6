"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.config import choices

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A base model (a directory, or a repository of the Hub), an export, a checkpoint (adapters too), or a "
        "run's output directory (its newest checkpoint; RUN/best: its best).",
        show_default=False,
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", metavar="DIR", help="Output directory. Must be new or empty.", show_default=False
    ),
]
SampleFormat = Annotated[
    choices.DataFormat | None,
    typer.Option("--format", help="Format of the samples. Default: the run's, else auto."),
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N samples.")]
Template = Annotated[
    choices.TemplateName | None,
    typer.Option(
        "--template",
        help="Chat template. Default: the one used in training, otherwise detected from the model.",
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option("--max-new-tokens", metavar="N", min=1, help="Maximum number of tokens in an answer."),
]
Temperature = Annotated[
    float,
    typer.Option("--temperature", metavar="T", min=0.0, help="Sampling temperature. 0: greedy decoding."),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", metavar="P", help="Sample from the most likely tokens with this total probability."
    ),
]
TopK = Annotated[
    int, typer.Option("--top-k", metavar="K", min=0, help="Sample from the K most likely tokens. 0: all.")
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p",
        metavar="P",
        help="Sample from tokens with at least P times the highest probability. 0: all.",
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty", metavar="F", help="Above 1: make tokens that already occurred less likely."
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="Text that ends an answer. Can be repeated."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Sampling seed.")]
Dtype = Annotated[
    choices.Dtype,
    typer.Option("--dtype", help="auto: bfloat16 on a GPU, float32 on a CPU."),
]
Device = Annotated[choices.Device, typer.Option("--device", help="auto: a GPU if there is one.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="CPU threads. Default: one per available core."),
]
MaxShardSize = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        metavar="SIZE",
        help="Maximum size of a weight file, such as 5GB or 512MiB. A number without a unit is bytes. Default: 5GiB.",
        show_default=False,
    ),
]
GgufType = Annotated[
    choices.GgufType | None,
    typer.Option(
        "--gguf-type",
        help="With --layout gguf: the type of the matrices. Default: f16.",
        show_default=False,
    ),
]
