"""`erniekit verify`: verifies that a model directory loads and computes correctly."""

from typing import get_args

import typer

from erniekit.cli import verify_options as opt
from erniekit.config.choices import Engine


def verify(
    directory: opt.Directory,
    base: opt.Base = None,
    source: opt.Source = None,
    transformers: opt.Transformers = None,
    engine: opt.Engine = None,
    engine_python: opt.EnginePython = None,
    trust_remote_code: opt.TrustRemoteCode = False,
    workarounds: opt.Workarounds = True,
    reference: opt.Reference = None,
    gradients: opt.Gradients = None,
    data: opt.Data = None,
    samples: opt.Samples = 8,
    max_new_tokens: opt.MaxNewTokens = 64,
) -> None:
    """Verify that a model directory loads and computes correctly.

    Prints one line per check: ok, note or FAIL. Exits with status 1 if a check failed.

    Examples:

    \b
      erniekit verify exports/digits --base models/base --source runs/digits
      erniekit verify exports/digits --engine vllm --engine fastdeploy --trust-remote-code
      erniekit verify exports/digits --data heldout.jsonl --samples 32
      erniekit verify model --reference reference.npz --gradients gradients.safetensors --no-transformers
    """
    from erniekit.checkpoint.download import model_directory
    from erniekit.display.text import counted
    from erniekit.export.engines.options import EngineOptions
    from erniekit.export.verify import VerifyOptions, verify_model
    from erniekit.runtime import configure

    configure("cpu", None, seed=0)
    directory, base = model_directory(directory), None if base is None else model_directory(base)
    engines = None
    if engine:
        engines = EngineOptions(_engines(engine), source, engine_python, trust_remote_code, workarounds)
    options = VerifyOptions(
        base, source, transformers, data, samples, max_new_tokens, reference, gradients, engines
    )
    failed = 0
    for check in verify_model(directory, options):
        typer.echo(str(check))
        failed += check.status == "FAIL"
    typer.echo(f"result: FAIL, {counted(failed, 'check')} failed" if failed else "result: ok")
    if failed:
        raise typer.Exit(1)


def _engines(names: list[str]) -> tuple[Engine, ...]:
    known: dict[str, Engine] = {name: name for name in get_args(Engine)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(known)}", param_hint="--engine")
    return tuple(known[name] for name in names)
