"""`erniekit export`: writes a trained model for the engines that serve it."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.config.choices import ChatTemplateSource, CheckpointLayout, Dtype


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="A run (its newest complete checkpoint; RUN/best: its best), a checkpoint, or a model directory.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", help="Directory to write; must be absent or empty.", show_default=False),
    ],
    layout: Annotated[
        CheckpointLayout,
        typer.Option(
            "--layout",
            help="hub: as released, for vLLM, SGLang, FastDeploy and llama.cpp. transformers: its nested "
            "config for vision-language models, which it loads without remote code. Text models have "
            "one layout.",
        ),
    ] = "hub",
    dtype: Annotated[
        Dtype,
        typer.Option("--dtype", help="Of the weights; auto: each as in the base. Routers stay float32."),
    ] = "auto",
    base: Annotated[
        Path | None,
        typer.Option("--base", help="The base model, where it is not at the path that the checkpoint names."),
    ] = None,
    chat_template: Annotated[
        ChatTemplateSource,
        typer.Option(
            "--chat-template",
            help="The base's, or the one that training used. auto: the base's, unless it prompts in another way "
            "than training did, or leaves lists of tools out.",
        ),
    ] = "auto",
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", help="Largest weight file, such as 5GB or 512MiB.")
    ] = "5GB",
) -> None:
    """Write a trained model for the engines that serve it.

    Adapters are merged into their base. Tokenizer, processor and generation files of the base are carried over,
    and its chat template if engines will prompt the model with it as it was trained. Memory: a few tensors.

    Examples:

    \b
      erniekit export runs/digits --output exports/digits
      erniekit export runs/lora/checkpoint-000500 --output out --layout transformers --dtype bfloat16
    """
    from erniekit.export.export import describe, export_model, parse_size

    report = export_model(
        source,
        output,
        layout=layout,
        dtype=dtype,
        base=base,
        max_shard_bytes=parse_size(max_shard_size),
        template=chat_template,
    )
    for line in describe(report):
        typer.echo(line)
