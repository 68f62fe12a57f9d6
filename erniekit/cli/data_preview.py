"""`erniekit data preview`: shows samples as the model will see them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erniekit.cli.train_options import ConfigFile, Overrides

if TYPE_CHECKING:
    from erniekit.inspection.preview import Preview


Number = Annotated[int, typer.Option("-n", "--number", metavar="N", min=1, help="Samples to show.")]
Skip = Annotated[int, typer.Option("--skip", metavar="N", min=0, help="Samples to pass over before them.")]
Named = Annotated[
    list[str] | None,
    typer.Option(
        "--sample",
        metavar="FILE:LINE",
        help="This sample, as errors name it; repeat it for more.",
        show_default=False,
    ),
]
Shuffled = Annotated[
    bool, typer.Option("--shuffled", help="Random samples, not the first ones; reads all data.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of --shuffled.")]
EvalSplit = Annotated[bool, typer.Option("--eval", help="Samples of data.eval, not of data.train.")]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page with thumbnails to this file instead."),
]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="No colours: trained text stands between two marks. So it is also where the output is no terminal.",
    ),
]


def preview(
    config: ConfigFile,
    overrides: Overrides = None,
    number: Number = 3,
    skip: Skip = 0,
    sample: Named = None,
    shuffled: Shuffled = False,
    seed: Seed = 0,
    heldout: EvalSplit = False,
    html: Html = None,
    plain: Plain = False,
) -> None:
    """Show samples as the model will see them.

    Each is rendered with the template of the run's model: what is trained, what is context, where pictures and videos
    stand and how many tokens they take, tools, reasoning; with task dpo both answers of a pair, and what they share.
    The model's weights are not needed. A sample that cannot be used is shown with its error.

    Examples:

    \b
      erniekit data preview run.yaml -n 3
      erniekit data preview run.yaml data.reasoning=mask --sample chats.jsonl:12
      erniekit data preview run.yaml -n 20 --shuffled --html preview.html
    """
    if shuffled and (sample or skip):
        raise typer.BadParameter("it cannot be combined with --sample or --skip", param_hint="--shuffled")
    if sample and skip:
        raise typer.BadParameter("it cannot be combined with --sample", param_hint="--skip")

    from erniekit.config import load_config
    from erniekit.data.encode.encoder import run_encoder
    from erniekit.data.encode.samples import SampleReader, pair_mode
    from erniekit.errors import ConfigError
    from erniekit.inspection.preview import Preview, preview_samples
    from erniekit.inspection.run import eval_files, training_files
    from erniekit.inspection.select import first_records, named_record, random_records

    run = load_config(config, overrides or [])
    if heldout and not run.data.eval:
        raise ConfigError(f"{config}: data.eval is empty: there are no held-out samples to show")
    find = eval_files if heldout else training_files
    files = find(run.data, log=typer.echo)
    encoder = run_encoder(run)
    if sample:
        chosen = [named_record(files, name, run.data.format) for name in sample]
    else:
        chosen = random_records(files, number, seed) if shuffled else first_records(files, number, skip)
    data, pairs = run.data, pair_mode(run.task, run.data.share_prompt)
    samples = preview_samples(
        chosen, SampleReader(encoder, data.max_length, data.on_long, data.allow_urls, pairs)
    )
    _show(
        Preview(str(config), run.model.path, encoder, run.data.max_length, run.data.on_long, samples),
        html,
        plain,
    )


def _show(seen: "Preview", html: Path | None, plain: bool) -> None:
    """Print the preview, or write it to `html`."""
    if html is not None:
        from erniekit.errors import DataError
        from erniekit.inspection.preview_page import render_preview

        try:
            html.write_text(render_preview(seen), encoding="utf-8")
        except OSError as error:
            raise DataError(f"{html}: cannot be written: {error.strerror or error}") from error
        typer.echo(f"{len(seen.samples):,} samples written to {html}")
    elif plain or not sys.stdout.isatty():
        from erniekit.inspection.preview_text import preview_lines

        for line in preview_lines(seen):
            typer.echo(line)
    else:
        from rich.console import Console

        from erniekit.inspection.preview_terminal import print_preview

        print_preview(seen, Console())
