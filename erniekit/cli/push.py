"""`erniekit push`: uploads a model to the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.cli.options import GgufType
from erniekit.config.choices import ExportLayout

Source = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="An exported directory; or a run or checkpoint, which is exported to a temporary directory first.",
        show_default=False,
    ),
]
Repository = Annotated[
    str,
    typer.Argument(
        metavar="REPO",
        help="A repository of the Hub, owner/name. It is created if needed.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the files and the model card, and upload nothing.")
]
Private = Annotated[bool, typer.Option("--private", help="If the repository is created, make it private.")]
Run = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="RUN", help="Run that the exported directory comes from, for the model card."
    ),
]
Layout = Annotated[
    ExportLayout | None,
    typer.Option("--layout", help="With a run: layout of the export. Default: hub.", show_default=False),
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="REPO", help="Base model on the Hub, if the run used a local directory."),
]
License = Annotated[
    str | None,
    typer.Option("--license", metavar="ID", help="License, such as apache-2.0. Default: the base model's."),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="BRANCH", help="Branch; it is created if needed. Default: main."),
]
Message = Annotated[str | None, typer.Option("--message", metavar="TEXT", help="Message of the commit.")]


def push(
    source: Source,
    repository: Repository,
    dry_run: DryRun = False,
    private: Private = False,
    run: Run = None,
    layout: Layout = None,
    gguf_type: GgufType = None,
    base: Base = None,
    licence: License = None,
    revision: Revision = None,
    message: Message = None,
) -> None:
    """Upload a model or an adapter to the Hugging Face Hub, with a model card.

    The card lists the base model, its license, the data, the metrics and the configuration of the run, with names of
    files instead of paths. A README.md in the directory is uploaded unchanged. All files are one commit, which also
    removes weight files of an earlier upload. huggingface_hub reads HF_TOKEN and HF_ENDPOINT.

    Examples:

    \b
      erniekit push exports/digits me/digits --run runs/digits --dry-run
      erniekit push runs/lora me/lora --layout adapter --base baidu/ERNIE-4.5-0.3B-PT --private
      erniekit push exports/text-gguf me/text-GGUF --run runs/text
    """
    from erniekit.export.push import prepare_upload, upload

    with prepare_upload(
        source, repository, run=run, layout=layout, gguf_type=gguf_type, base=base, licence=licence
    ) as found:
        for line in found.lines():
            typer.echo(line)
        if dry_run:
            if found.card is not None:
                typer.echo(f"\n{found.card}")
            typer.echo("Nothing was uploaded (--dry-run).")
            return
        address, removed = upload(found, private=private, revision=revision, message=message)
        for name in removed:
            typer.echo(f"  {name}: an older weight file, removed from the repository")
        typer.echo(f"uploaded: {address}")
