"""`erniekit data convert`: converts data of any format to format `messages`, as JSON lines."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from erniekit.config.choices import DataFormat, OnError


def convert(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IN", help="Data files, directories or glob patterns to read.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="JSON lines file to write.", show_default=False)
    ] = None,
    to: Annotated[
        Literal["messages"],
        typer.Option("--to", help="Format to write. messages can represent every sample."),
    ] = "messages",
    format: Annotated[
        DataFormat,
        typer.Option(
            "--format", help="Format of the input samples. auto: detected from the keys of each sample."
        ),
    ] = "auto",
    on_error: Annotated[
        OnError,
        typer.Option("--on-error", help="Invalid samples: raise stops, skip leaves them out."),
    ] = "raise",
    allow_urls: Annotated[
        bool,
        typer.Option("--allow-urls", help="Accept images and videos that samples reference by http(s) URL."),
    ] = False,
) -> None:
    """Convert data of any format to format messages, as JSON lines.

    Tools, calls, reasoning, preferences, images and videos are kept. Relative paths are rewritten for the location of
    the output. The output file appears only when it is complete, and replaces an existing file.

    Examples:

    \b
      erniekit data convert alpaca.json chats.jsonl
      erniekit data convert 'old/*.json' tools.parquet all.jsonl --on-error skip
    """
    # Of a single argument the parser would say that IN is missing.
    if output is None:
        raise typer.BadParameter("name the data files to read", param_hint="IN")
    if not sources:
        raise typer.BadParameter(f"name the file to write, after {output}", param_hint="OUT")

    from erniekit.data.convert import convert as run
    from erniekit.data.files.find import expand
    from erniekit.data.media.access import NO_URLS, PUBLIC_URLS
    from erniekit.display.text import counted
    from erniekit.paths import expand_path

    paths = expand([expand_path(source) for source in sources], log=typer.echo)
    report = run(
        paths, output, to=to, format=format, on_error=on_error, access=PUBLIC_URLS if allow_urls else NO_URLS
    )
    for error in report.errors:
        typer.echo(f"skipped: {error}")
    if report.errors:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in report.skipped.most_common())
        typer.echo(f"{counted(len(report.errors), 'sample')} skipped ({counts})")
    typer.echo(f"{counted(report.written, 'sample')} from {counted(len(paths), 'file')} written to {output}")
