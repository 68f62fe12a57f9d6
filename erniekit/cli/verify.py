"""`erniekit verify`: verifies that a model directory loads and computes correctly."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from erniekit.config.choices import Engine


def verify(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Model directory, such as an export, or a repository of the Hub.",
            show_default=False,
        ),
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="Base model. Compares names, shapes and dtypes, and finds weights in the wrong place.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            metavar="MODEL",
            help="The run or checkpoint that was exported. Compares its logits with the export's.",
        ),
    ] = None,
    transformers: Annotated[
        bool | None,
        typer.Option(
            "--transformers/--no-transformers",
            help="Load in transformers and compare logits with Paddle. Default: if torch is installed.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="Compare greedy answers and log-probabilities with an engine; repeat it for several. transformers; "
            "vllm and llama.cpp, in the environments of `make engines`; sglang, fastdeploy and paddleformers are not "
            "run, only their loaders' rules are checked.",
            show_default=False,
        ),
    ] = None,
    engine_python: Annotated[
        Path | None,
        typer.Option(
            "--engine-python", metavar="FILE", help="Python of another environment with the engine."
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Let vLLM run the Python files of the model directory, which it needs for vision-language models.",
        ),
    ] = False,
    workarounds: Annotated[
        bool,
        typer.Option(
            "--workarounds/--no-workarounds", help="Correct known faults of the engine before it is compared."
        ),
    ] = True,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="FILE",
            help=".npz file with inputs and expected logits, loss and gradient norms.",
        ),
    ] = None,
    gradients: Annotated[
        Path | None,
        typer.Option(
            "--gradients",
            metavar="FILE",
            help=".safetensors file with expected gradients, in addition to --reference.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Data file with chats. Greedy answers must be the same in Paddle and transformers.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, help="With --data: use the first N chats.")
    ] = 8,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", metavar="N", min=1, help="With --data: maximum number of tokens in an answer."
        ),
    ] = 64,
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
