"""Options that commands which run a model share."""

from typing import Annotated

import typer

from erniekit.config import choices

Template = Annotated[
    choices.TemplateName | None,
    typer.Option("--template", help="Chat template. Default: as in training, else told from the model."),
]
MaxNewTokens = Annotated[
    int,
    typer.Option("--max-new-tokens", metavar="N", min=1, help="Tokens after which an answer is cut off."),
]
Temperature = Annotated[
    float, typer.Option("--temperature", metavar="T", min=0.0, help="0: always the most probable token.")
]
TopP = Annotated[
    float,
    typer.Option("--top-p", metavar="P", help="Draw from the likeliest tokens that make up this share."),
]
TopK = Annotated[int, typer.Option("--top-k", metavar="K", min=0, help="Draw from the K likeliest; 0: all.")]
MinP = Annotated[
    float,
    typer.Option("--min-p", metavar="P", help="Draw from tokens with this share of the likeliest; 0: all."),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option("--repetition-penalty", metavar="F", help="Over 1: tokens that came up are less likely."),
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends an answer; repeat it for more.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of what is drawn.")]
Dtype = Annotated[
    choices.Dtype,
    typer.Option("--dtype", help="auto: bfloat16 on a GPU, float32 on a CPU."),
]
Device = Annotated[choices.Device, typer.Option("--device", help="auto: a GPU where there is one.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="CPU threads. Default: one for each usable core."),
]
