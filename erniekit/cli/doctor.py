"""`erniekit doctor`: checks this machine."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erniekit.cli.options import Device
from erniekit.config import choices
from erniekit.errors import ConfigError

if TYPE_CHECKING:
    from erniekit.doctor.check import Check

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}


def doctor(
    device: Device = "auto",
    only: Annotated[
        choices.DoctorSection | None,
        typer.Option("--only", help="Run only this section. Default: all.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Also write all results, tracebacks and the settings in the environment to this file, without "
            "secrets, for a bug report.",
        ),
    ] = None,
) -> None:
    """Check this machine: what is installed, kernels, a training step, processes.

    Compares every form of every kernel with a float64 formula, a step of a small model with plain kernels in float32,
    and two processes with one. On a GPU, it also checks flash attention at real shapes, bfloat16 and NCCL (with two
    GPUs), and measures speed. Takes a minute or two. Exits with status 1 if a check fails.

    Examples:

    \b
      erniekit doctor
      erniekit doctor --only kernels
      erniekit doctor --report doctor.txt
    """
    import tempfile

    _import_paddle()
    from erniekit.doctor.check import run_check
    from erniekit.doctor.doctor import all_checks
    from erniekit.doctor.report import result_line, summary_line, write_report
    from erniekit.launch.launch import visible_gpus

    chosen, problems = _configure(device)
    live, results = sys.stdout.isatty(), []
    with tempfile.TemporaryDirectory(prefix="erniekit-doctor-") as work:
        for section, checks in all_checks(chosen, visible_gpus(), Path(work)).items():
            if only not in (None, section):
                continue
            typer.echo(section)
            for check in [*(problems if section == "system" else []), *checks]:
                if live:
                    typer.echo(f"  {check.name} ...", nl=False)
                result = run_check(check)
                if live:
                    typer.echo("\r\033[K", nl=False)
                line = result_line(check, result)
                typer.echo(
                    line.replace(result.status, typer.style(result.status, _COLOURS[result.status]), 1)
                )
                results.append((check, result))
    typer.echo(summary_line([result for _, result in results]))
    if report is not None:
        write_report(report, results, os.environ)
        typer.echo(f"report written to {report}")
    if any(result.status == "failed" for _, result in results):
        raise typer.Exit(1)


def _import_paddle() -> None:
    """Raise ConfigError if Paddle cannot be imported, for example without the libraries of CUDA."""
    try:
        import paddle  # noqa: F401
    except (ImportError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"Paddle cannot be imported: {first}. Install it as the README says") from error


def _configure(device: str) -> "tuple[str, list[Check]]":
    """ "cpu" or "gpu", and a failed check where the kernels of this device cannot start: then Paddle's are used."""
    from erniekit.doctor.check import Check, failed
    from erniekit.runtime import configure

    try:
        return configure(device, None, seed=0), []
    except ConfigError as error:
        reason = str(error)
    # Raises again where the device is the reason.
    chosen = configure(device, None, seed=0, kernels="paddle")
    return chosen, [Check("system", "kernels", lambda: failed(reason))]
