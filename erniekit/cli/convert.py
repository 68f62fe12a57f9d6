"""`erniekit convert`: writes a model in another layout."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.config.choices import ConvertLayout, GgufType


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A model directory, a checkpoint of all weights, or a repository of the Hub, in any layout.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Output directory. Must be new or empty.", show_default=False),
    ],
    to: Annotated[
        ConvertLayout,
        typer.Option(
            "--to",
            "--layout",
            help="hub: the layout of the -PT releases. transformers: the nested config.json of transformers for "
            "vision-language models. paddle: the layout of the -Paddle releases. gguf: one file for "
            "llama.cpp, of text models.",
            show_default=False,
        ),
    ],
    gguf_type: Annotated[
        GgufType, typer.Option("--gguf-type", help="With --to gguf: the type of the matrices.")
    ] = "f16",
    max_shard_size: Annotated[
        str,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            help="Maximum size of a weight file, such as 5GB or 512MiB. A number without a unit is bytes.",
        ),
    ] = "5GB",
) -> None:
    """Write a model in another layout, without training.

    The layout of the model is detected from its files. Values and dtypes are unchanged. Only a few tensors are in
    memory at a time.

    Examples:

    \b
      erniekit convert baidu/ERNIE-4.5-0.3B-Paddle models/ernie --to hub
      erniekit convert exports/digits exports/digits-Paddle --to paddle
      erniekit convert baidu/ERNIE-4.5-0.3B-PT models/ernie-gguf --to gguf --gguf-type q8_0
    """
    from erniekit.display.progress import show_file_progress
    from erniekit.export import gguf
    from erniekit.export.convert import convert_model, describe
    from erniekit.export.export import parse_size

    if to == "gguf":
        with show_file_progress() as progress:
            written = gguf.convert_to_gguf(source, output, gguf_type, progress)
        for line in gguf.describe(written):
            typer.echo(line)
        return
    with show_file_progress() as progress:
        report = convert_model(
            source, output, to, max_shard_bytes=parse_size(max_shard_size), progress=progress
        )
    for line in describe(report):
        typer.echo(line)
