"""Options of `erniekit verify`."""

from pathlib import Path
from typing import Annotated

import typer

Directory = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Model directory, such as an export, or a repository of the Hub.",
        show_default=False,
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="Base model. Compares names, shapes and dtypes, and finds weights in the wrong place.",
    ),
]
Source = Annotated[
    Path | None,
    typer.Option(
        "--source",
        metavar="MODEL",
        help="The run or checkpoint that was exported. Compares its logits with the export's.",
    ),
]
Transformers = Annotated[
    bool | None,
    typer.Option(
        "--transformers/--no-transformers",
        help="Load in transformers and compare logits with Paddle. Default: if torch is installed.",
        show_default=False,
    ),
]
Engine = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Compare greedy answers and log-probabilities with an engine; repeat it for several. transformers; "
        "vllm and llama.cpp, in the environments of `make engines`; sglang, fastdeploy and paddleformers are not "
        "run, only their loaders' rules are checked.",
        show_default=False,
    ),
]
EnginePython = Annotated[
    Path | None,
    typer.Option("--engine-python", metavar="FILE", help="Python of another environment with the engine."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let vLLM run the Python files of the model directory, which it needs for vision-language models.",
    ),
]
Workarounds = Annotated[
    bool,
    typer.Option(
        "--workarounds/--no-workarounds", help="Correct known faults of the engine before it is compared."
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        metavar="FILE",
        help=".npz file with inputs and expected logits, loss and gradient norms.",
    ),
]
Gradients = Annotated[
    Path | None,
    typer.Option(
        "--gradients",
        metavar="FILE",
        help=".safetensors file with expected gradients, in addition to --reference.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Data file with chats. Greedy answers must be the same in Paddle and transformers.",
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", metavar="N", min=1, help="With --data: use the first N chats.")
]
MaxNewTokens = Annotated[
    int,
    typer.Option(
        "--max-new-tokens", metavar="N", min=1, help="With --data: maximum number of tokens in an answer."
    ),
]
