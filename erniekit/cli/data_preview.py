"""`erniekit data preview`: shows samples as the model will see them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erniekit.cli.train_options import ConfigFile, Overrides

if TYPE_CHECKING:
    from erniekit.inspection.preview import Preview


Number = Annotated[int, typer.Option("-n", "--number", metavar="N", min=1, help="Samples to show.")]
Skip = Annotated[int, typer.Option("--skip", metavar="N", min=0, help="Skip this many samples first.")]
Named = Annotated[
    list[str] | None,
    typer.Option(
        "--sample",
        metavar="FILE:LINE",
        help="Show this sample, named as in error messages. Can be repeated.",
        show_default=False,
    ),
]
Shuffled = Annotated[
    bool, typer.Option("--shuffled", help="Show random samples instead of the first ones; reads all data.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of --shuffled.")]
EvalSplit = Annotated[bool, typer.Option("--eval", help="Show samples of data.eval instead of data.train.")]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write an HTML page with thumbnails to this file instead."),
]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="No colors: mark trained text with brackets. The default if the output is not a terminal.",
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
    use_eval: EvalSplit = False,
    html: Html = None,
    plain: Plain = False,
) -> None:
    """Show samples as the model sees them.

    Each sample is rendered with the template of the run's model: trained text and context, images and videos with
    their tokens, tools, reasoning; with task dpo, both answers of a pair and their shared prompt. The model's weights
    are not needed. A sample that cannot be used is shown with its error.

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

    from erniekit.checkpoint.download import locate_model
    from erniekit.config import load_config
    from erniekit.data.encode.encoder import run_encoder
    from erniekit.data.encode.samples import SampleReader, pair_mode
    from erniekit.data.media.access import MediaAccess
    from erniekit.errors import ConfigError
    from erniekit.inspection.data_files import eval_files, training_files
    from erniekit.inspection.preview import Preview, preview_samples
    from erniekit.inspection.select import first_records, named_record, random_records

    run = locate_model(load_config(config, overrides or []), weights=False)
    if use_eval and not run.data.eval:
        raise ConfigError(f"{config}: data.eval is empty: there are no eval samples to show")
    find = eval_files if use_eval else training_files
    files = find(run.data, log=typer.echo)
    encoder = run_encoder(run)
    if sample:
        selected = [named_record(files, name, run.data.format) for name in sample]
    else:
        selected = random_records(files, number, seed) if shuffled else first_records(files, number, skip)
    data, pairs = run.data, pair_mode(run.task, run.data.share_prompt)
    samples = preview_samples(
        selected, SampleReader(encoder, data.max_length, data.on_long, MediaAccess.of(data), pairs)
    )
    _show(
        Preview(str(config), run.model.path, encoder, run.data.max_length, run.data.on_long, samples),
        html,
        plain,
    )


def _show(seen: "Preview", html: Path | None, plain: bool) -> None:
    """Prints the preview, or writes it to `html`."""
    if html is not None:
        from erniekit.display.text import counted
        from erniekit.errors import DataError
        from erniekit.inspection.preview_page import render_preview

        try:
            html.write_text(render_preview(seen), encoding="utf-8")
        except OSError as error:
            raise DataError(f"{html}: cannot be written: {error.strerror or error}") from error
        typer.echo(f"{counted(len(seen.samples), 'sample')} written to {html}")
    elif plain or not sys.stdout.isatty():
        from erniekit.inspection.preview_text import preview_lines

        for line in preview_lines(seen):
            typer.echo(line)
    else:
        from rich.console import Console

        from erniekit.inspection.preview_terminal import print_preview

        print_preview(seen, Console())
