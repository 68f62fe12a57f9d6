"""`erniekit data check`: reports the contents and errors of data files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erniekit.cli.options import Limit, SampleFormat
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
        metavar="MODEL",
        help="A checkpoint directory, or a repository of the Hub. Its tokenizer and template give lengths in tokens "
        "and find encoding errors. Weights are not needed.",
    ),
]
Run = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="The config of a run: its model, sources and settings. Other options override it.",
    ),
]
TemplateOption = Annotated[
    choices.TemplateName | None,
    typer.Option("--template", help="Chat template. Default: the run's, else detected from the model."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        metavar="N",
        min=2,
        help="Maximum number of tokens in a sample and in a packed sequence. Default: the run's, else 8192.",
    ),
]
OnLong = Annotated[
    choices.OnLong | None,
    typer.Option(
        "--on-long",
        help="What to do with longer samples. Default: the run's, else error.",
    ),
]


def check(
    files: Files = None,
    model: Model = None,
    config: Run = None,
    format: SampleFormat = None,
    template: TemplateOption = None,
    max_length: MaxLength = None,
    on_long: OnLong = None,
    limit: Limit = None,
    all_errors: Annotated[
        bool, typer.Option("--all-errors", help="List every error, not only the first 20.")
    ] = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode images and videos in full, not only their headers.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the report to this file, as JSON."),
    ] = None,
) -> None:
    """Check data files: contents, lengths and errors.

    Reports formats, roles, contents, duplicates, lengths, and each sample that training would reject, with file and
    line. With a model, also token counts and packing efficiency. Exits with status 1 if a sample has an error; a sample
    that --on-long drop skips is not an error.

    Examples:

    \b
      erniekit data check chats.jsonl
      erniekit data check data/ --model baidu/ERNIE-4.5-0.3B-PT --max-length 4096 --json report.json
      erniekit data check --config run.yaml --decode
    """
    if not files and config is None:
        raise typer.BadParameter("name data files, or a run with --config", param_hint="FILE")
    for name in files or ():
        if Path(name).suffix in (".yaml", ".yml"):
            raise typer.BadParameter(f"{name} is a configuration; give it with --config", param_hint="FILE")
    if model is None and config is None:
        for name, value in (("--template", template), ("--max-length", max_length), ("--on-long", on_long)):
            if value is not None:
                raise typer.BadParameter("it needs --model or --config", param_hint=name)

    from erniekit.config import DataConfig, SourceConfig, load_config
    from erniekit.data.encode.samples import pair_mode
    from erniekit.data.media.access import MediaAccess
    from erniekit.inspection.check import CheckOptions
    from erniekit.inspection.data_files import eval_files, named_files, training_files
    from erniekit.paths import expand_path

    run = load_config(config) if config is not None else None
    paths = [expand_path(name) for name in files or ()]
    named = [SourceConfig(path=name) for name in files or ()]
    data = run.data if run is not None else DataConfig(train=named)
    options = CheckOptions(
        encoder=_encoder(run, model, template),
        max_length=max_length or data.max_length,
        on_long=on_long or data.on_long,
        access=MediaAccess.of(data),
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
    from erniekit.checkpoint.download import local_model, locate_model, names_repository
    from erniekit.config import DataConfig
    from erniekit.data.encode.encoder import make_encoder, run_encoder

    data = run.data if run is not None else DataConfig.without_sources()
    if template is not None:
        data = data.model_copy(update={"template": template})
    if model is not None:
        if names_repository(model):
            model = local_model(str(model), weights=False).directory
        # Not the model that the run may enlarge.
        return make_encoder(model, data, seed=0 if run is None else run.train.seed)
    if run is None:
        return None
    return run_encoder(locate_model(run, weights=False).model_copy(update={"data": data}))


def _report(files: "list[CheckedFile]", options: "CheckOptions", json_file: Path | None) -> None:
    """Checks the files, prints the report and writes it to `json_file`. Exits with status 1 if there are errors."""
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
