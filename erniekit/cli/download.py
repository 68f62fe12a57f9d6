"""`erniekit download`: downloads a model from the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer


def download(
    repository: Annotated[
        str,
        typer.Argument(
            metavar="REPO",
            help="A repository of the Hub, such as baidu/ERNIE-4.5-0.3B-PT.",
            show_default=False,
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="REV", help="Branch, tag or commit. Default: the main branch."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="DIR", help="Directory for the files. Default: the Hub's cache (HF_HOME)."
        ),
    ] = None,
    no_weights: Annotated[
        bool,
        typer.Option(
            "--no-weights",
            help="Only configuration, tokenizer and processor: enough for `data check`, `data preview` and "
            "`train --dry-run --no-weights`.",
        ),
    ] = False,
) -> None:
    """Download a model from the Hugging Face Hub, or update it.

    Downloads the files of the model: safetensors, configuration, tokenizer, processor and license, and Python files,
    which engines need and erniekit does not run. Repeat the command to continue an interrupted download: complete files
    are kept. huggingface_hub reads HF_TOKEN, HF_HOME and HF_ENDPOINT (a mirror).

    Examples:

    \b
      erniekit download baidu/ERNIE-4.5-0.3B-PT
      erniekit download baidu/ERNIE-4.5-VL-28B-A3B-Thinking --to models/thinking
      erniekit download baidu/ERNIE-4.5-21B-A3B-PT --revision main --no-weights
    """
    from erniekit.checkpoint.download import download_model

    found = download_model(repository, revision, to=to, weights=not no_weights)
    typer.echo(f"{repository}, commit {found.commit}: {found.directory}")
    typer.echo(f"use it with model.path: {repository if to is None else to}")
