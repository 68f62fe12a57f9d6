"""`erniekit verify`: proves that a model directory loads and computes right."""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model directory, such as an export.", show_default=False)
    ],
    base: Annotated[
        Path | None, typer.Option("--base", help="Compare names, shapes and element types with this model's.")
    ] = None,
    transformers: Annotated[
        bool | None,
        typer.Option(
            "--transformers/--no-transformers",
            help="Load in transformers and compare logits with Paddle's; by default if torch is installed.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", metavar="FILE.npz", help="Stored inputs, logits, loss and gradient norms."
        ),
    ] = None,
    gradients: Annotated[
        Path | None,
        typer.Option("--gradients", metavar="FILE.safetensors", help="Stored gradients, beside --reference."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="File of chats: greedy answers must be the same in Paddle and transformers."
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="With --data: its first N chats.")] = 8,
    max_new_tokens: Annotated[
        int,
        typer.Option("--max-new-tokens", min=1, help="With --data: tokens after which an answer is cut off."),
    ] = 64,
) -> None:
    """Prove that a model directory loads and computes right.

    Prints a line for each check: ok, note (good to know) or FAIL. Exits with 1 if anything failed.

    Examples:

    \b
      erniekit verify exports/digits --base models/base
      erniekit verify exports/digits --data heldout.jsonl --samples 32
      erniekit verify model --reference reference.npz --gradients gradients.safetensors --no-transformers
    """
    from erniekit.export.verify import VerifyOptions, verify_model
    from erniekit.runtime import configure

    configure("cpu", None, seed=0)
    options = VerifyOptions(base, transformers, data, samples, max_new_tokens, reference, gradients)
    failed = 0
    for check in verify_model(directory, options):
        typer.echo(str(check))
        failed += check.status == "FAIL"
    typer.echo(f"result: FAIL, {failed} checks failed" if failed else "result: ok")
    if failed:
        raise typer.Exit(1)
