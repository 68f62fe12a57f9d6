"""`erniekit data convert`: writes data of any format as JSON lines of format `messages`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from erniekit.config.choices import DataFormat, OnError


def convert(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="IN", help="Data files, directories or patterns to read.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="File of JSON lines to write.", show_default=False)
    ],
    to: Annotated[
        Literal["messages"],
        typer.Option("--to", help="Format to write; messages is the one that can hold every sample."),
    ] = "messages",
    format: Annotated[
        DataFormat, typer.Option("--format", help="Format of the samples that are read.")
    ] = "auto",
    on_error: Annotated[
        OnError,
        typer.Option("--on-error", help="Stop at a sample that is wrong (raise), or leave it out (skip)."),
    ] = "raise",
    allow_urls: Annotated[
        bool,
        typer.Option("--allow-urls", help="Accept pictures and videos that samples name by http(s) address."),
    ] = False,
) -> None:
    """Write data of any format as JSON lines of format messages.

    Tools, calls, reasoning, preferences, pictures and videos are kept; paths are written as seen from the output.
    The output is there only when it is complete; a file that stands in its place is replaced.

    Examples:

    \b
      erniekit data convert alpaca.json chats.jsonl
      erniekit data convert 'old/*.json' tools.parquet all.jsonl --on-error skip
    """
    from erniekit.data.convert import convert as run
    from erniekit.data.files.find import expand
    from erniekit.paths import expand_path

    paths = expand([expand_path(source) for source in sources], log=typer.echo)
    report = run(paths, output, to=to, format=format, on_error=on_error, allow_urls=allow_urls)
    for error in report.errors:
        typer.echo(f"left out: {error}")
    if report.errors:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in report.skipped.most_common())
        typer.echo(f"{len(report.errors):,} samples left out ({counts})")
    typer.echo(f"{report.written:,} samples of {len(paths):,} file(s) written to {output}")
