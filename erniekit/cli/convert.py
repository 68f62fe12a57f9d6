"""`erniekit convert`: writes a model in another layout."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.cli.options import MaxShardSize
from erniekit.config.choices import ConvertLayout, GgufType
from erniekit.errors import ConfigError


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
        GgufType | None,
        typer.Option(
            "--gguf-type", help="With --to gguf: the type of the matrices. Default: f16.", show_default=False
        ),
    ] = None,
    max_shard_size: MaxShardSize = None,
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
    from erniekit.export.convert import convert_model, describe_conversion
    from erniekit.export.export import shard_bytes

    if gguf_type is not None and to != "gguf":
        raise ConfigError("--gguf-type needs --to gguf")
    if max_shard_size is not None and to == "gguf":
        raise ConfigError("--max-shard-size does not apply to --to gguf, which has one weight file")
    if to == "gguf":
        with show_file_progress() as progress:
            written = gguf.convert_to_gguf(source, output, gguf_type or "f16", progress)
        for line in gguf.describe_gguf(written):
            typer.echo(line)
        return
    with show_file_progress() as progress:
        report = convert_model(
            source, output, to, max_shard_bytes=shard_bytes(max_shard_size), progress=progress
        )
    for line in describe_conversion(report):
        typer.echo(line)
