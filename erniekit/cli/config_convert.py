"""`erniekit config convert`: converts a configuration of ERNIEKit, LLaMA-Factory or ms-swift."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.config.others.recognize import TrainerName


def convert(
    old: Annotated[
        Path,
        typer.Argument(
            metavar="OLD",
            help="YAML or JSON file of the other trainer, or a shell script (.sh) with swift sft, pt or rlhf.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write. Default: print the configuration.",
            show_default=False,
        ),
    ] = None,
    trainer: Annotated[
        TrainerName | None,
        typer.Option(
            "--from", help="The other trainer. Default: detected from the keys.", show_default=False
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus",
            metavar="N",
            min=1,
            help="Number of GPUs of the old run, for train.rows_per_step. Default: the fewest that its degrees of "
            "parallelism allow.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert a configuration of ERNIEKit, LLaMA-Factory or ms-swift.

    The new file has comments where a value needs review. The report lists the keys that are mapped, the keys that are
    not needed here and why, and the keys without an equivalent and what to do instead. Without --output, the file is
    printed, and the report goes to standard error.

    Examples:

    \b
      erniekit config convert run_sft_8k.yaml -o run.yaml
      erniekit config convert run_dpo_8k.yaml -o run.yaml --gpus 8
      erniekit config convert train.sh
    """
    from erniekit.config.convert.convert import convert_file
    from erniekit.config.convert.write import config_text, report_lines
    from erniekit.errors import ConfigError

    if output is not None and output.exists():
        raise ConfigError(f"{output}: exists already; choose another --output")
    conversion = convert_file(old, trainer, gpus)
    text = config_text(conversion, old.name)
    if output is None:
        typer.echo(text, nl=False)
    else:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{output}: cannot be written: {error.strerror}") from None
    for line in report_lines(conversion):
        typer.echo(line, err=output is None)
    if output is not None:
        typer.echo(f"\nwrote {output}; next: erniekit train {output} --dry-run")
