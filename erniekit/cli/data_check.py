"""`erniekit data check`: tells what is in data files and what is wrong with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erniekit.config import choices

if TYPE_CHECKING:
    from erniekit.config import Config
    from erniekit.data.encode.encoder import Encoder
    from erniekit.inspection.check import CheckedFile, CheckOptions


Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE",
        help="Data files, directories or patterns such as 'chats/*.jsonl'. May be left out with --config.",
        show_default=False,
    ),
]
Model = Annotated[
    Path | None,
    typer.Option(
        "--model",
        metavar="DIR",
        help="A checkpoint, whose tokenizer and template count: lengths in tokens, and everything that "
        "encoding would refuse. Its weights are not needed.",
    ),
]
Run = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="RUN.yaml",
        help="A run, whose model, sources and settings count; other options win over it.",
    ),
]
FormatOption = Annotated[
    choices.DataFormat | None,
    typer.Option("--format", help="Format of the samples. Default: the run's, else auto."),
]
TemplateOption = Annotated[
    choices.TemplateName | None,
    typer.Option("--template", help="Chat template. Default: the run's, else told from the model."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        metavar="N",
        min=2,
        help="Most tokens of a sample, and tokens in a row. Default: the run's, else 8192.",
    ),
]
OnLong = Annotated[
    choices.OnLong | None,
    typer.Option("--on-long", help="What becomes of longer samples. Default: the run's, else error."),
]


def check(
    files: Files = None,
    model: Model = None,
    config: Run = None,
    format: FormatOption = None,
    template: TemplateOption = None,
    max_length: MaxLength = None,
    on_long: OnLong = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N samples.")
    ] = None,
    all_errors: Annotated[
        bool, typer.Option("--all-errors", help="Name every error, not only the first 20.")
    ] = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every picture and video in full, not only its header.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the report to this file, as JSON."),
    ] = None,
) -> None:
    """Tell what is in data files and what is wrong with them.

    Formats, roles, contents, duplicates, lengths, and each sample that training would refuse, with its place. With a
    model also tokens and how full the packed rows will be. Exits with 1 if any sample has an error; a sample that is
    left out for its length with --on-long drop has none.

    Examples:

    \b
      erniekit data check chats.jsonl
      erniekit data check data/ --model baidu/ERNIE-4.5-0.3B-PT --max-length 4096 --json report.json
      erniekit data check --config run.yaml --decode
    """
    if not files and config is None:
        raise typer.BadParameter("name data files, or a run with --config", param_hint="FILE")
    if model is None and config is None:
        for name, value in (("--template", template), ("--max-length", max_length), ("--on-long", on_long)):
            if value is not None:
                raise typer.BadParameter("it needs --model or --config", param_hint=name)

    from erniekit.config import DataConfig, SourceConfig, load_config
    from erniekit.data.encode.samples import pair_mode
    from erniekit.inspection.check import CheckOptions
    from erniekit.inspection.run import eval_files, named_files, training_files
    from erniekit.paths import expand_path

    run = load_config(config) if config is not None else None
    paths = [expand_path(name) for name in files or ()]
    named = [SourceConfig(path=name) for name in files or ()]
    data = run.data if run is not None else DataConfig(train=named)
    options = CheckOptions(
        encoder=_encoder(run, model, template),
        max_length=max_length or data.max_length,
        on_long=on_long or data.on_long,
        allow_urls=data.allow_urls,
        limit=limit,
        decode=decode,
        most_errors=None if all_errors else 20,
        pairs="chosen" if run is None else pair_mode(run.task, data.share_prompt),
    )
    if paths:
        found = named_files(paths, format or data.format, typer.echo)
    else:
        found = [*training_files(data, format, typer.echo), *eval_files(data, format, typer.echo)]
    _report(found, options, json_file)


def _encoder(run: "Config | None", model: Path | None, template: str | None) -> "Encoder | None":
    """The encoder of the named model, else of the run's; None without either."""
    from erniekit.config import DataConfig
    from erniekit.data.encode.encoder import make_encoder, run_encoder

    data = run.data if run is not None else DataConfig.without_sources()
    if template is not None:
        data = data.model_copy(update={"template": template})
    if model is not None:
        # Not the model that the run may enlarge.
        return make_encoder(model, data, seed=0 if run is None else run.train.seed)
    return None if run is None else run_encoder(run.model_copy(update={"data": data}))


def _report(files: "list[CheckedFile]", options: "CheckOptions", json_file: Path | None) -> None:
    """Check the files, print what was found and write it to `json_file`. Exits with 1 where something is wrong."""
    import json

    from erniekit.display.progress import show_file_progress
    from erniekit.errors import DataError
    from erniekit.inspection.check import check_files
    from erniekit.inspection.format_report import format_report, report_values

    if options.encoder is not None:
        typer.echo(f"template {options.encoder.template.name}, max_length {options.max_length:,}")
        for note in options.encoder.limits.notes():
            typer.echo(f"note: {note}")
    with show_file_progress() as on_progress:
        report = check_files(files, options, on_progress)
    for line in format_report(report):
        typer.echo(line)
    if json_file is not None:
        try:
            json_file.write_text(
                json.dumps(report_values(report), indent=2, ensure_ascii=False) + "\n", "utf-8"
            )
        except OSError as error:
            raise DataError(f"{json_file}: cannot be written: {error.strerror or error}") from error
    if not report.is_clean:
        raise typer.Exit(1)
