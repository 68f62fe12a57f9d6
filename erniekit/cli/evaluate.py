"""`erniekit eval`: answers held-out chats and counts exact matches."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def evaluate(
    model: Annotated[
        Path, typer.Argument(help="An export, a checkpoint, or a run's output directory.", show_default=False)
    ],
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            metavar="FILE",
            help="Chats, each ending with its reference answer; repeat it for more files.",
            show_default=False,
        ),
    ],
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N chats.")
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option("--max-new-tokens", metavar="N", min=1, help="Tokens after which an answer is cut off."),
    ] = 64,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Answers generated at one time.")
    ] = 128,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write every answer to this file, as JSON lines."),
    ] = None,
    min_exact_match: Annotated[
        float | None,
        typer.Option(
            "--min-exact-match",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Exit with 1 if less is exact; 0.95 is 95%.",
        ),
    ] = None,
    format: Annotated[
        Literal["auto", "messages", "erniekit"], typer.Option("--format", help="Format of the data files.")
    ] = "auto",
    template: Annotated[
        Literal["auto", "ernie", "ernie_vl", "ernie_vl_thinking"] | None,
        typer.Option("--template", help="Chat template. Default: as in training, else told from the model."),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option("--dtype", help="auto: bfloat16 on a GPU, float32 on a CPU."),
    ] = "auto",
    device: Annotated[
        Literal["auto", "cpu", "gpu"], typer.Option("--device", help="auto: a GPU where there is one.")
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, help="CPU threads. Default: one for each usable core."),
    ] = None,
) -> None:
    """Answer held-out chats and count exact matches.

    Each chat's last answer is generated anew, greedily, from what stands before it. It matches if the model
    ends it and it equals the reference to the character; with a thinking template, after the reasoning.

    Examples:

    \b
      erniekit eval runs/digits --data data/digits/heldout.jsonl
      erniekit eval exports/digits --data heldout.jsonl --output answers.jsonl --min-exact-match 0.95
    """
    from erniekit.errors import ConfigError, VerifyError
    from erniekit.runtime import configure

    place = configure(device, threads, seed=0)
    if dtype == "auto":
        dtype = "bfloat16" if place == "gpu" else "float32"
    if (place, dtype) == ("cpu", "bfloat16"):
        raise ConfigError("--dtype bfloat16 needs a GPU: Paddle has no such kernels for CPUs; use float32")

    from erniekit.inference.evaluate import describe_mistakes, load_samples, write_predictions
    from erniekit.inference.evaluate import evaluate as run
    from erniekit.inference.load import find_model
    from erniekit.inference.progress import show_progress
    from erniekit.inference.text import AnswerText

    source = find_model(model)
    encoder, text = source.encoder(template), AnswerText.from_checkpoint(source.directory)
    # Before the weights: a mistake in the data should not have to wait for them.
    samples = load_samples(data, encoder, format=format, limit=limit)
    typer.echo(f"{source.checkpoint}: {len(samples):,} samples, template {encoder.template.name}")
    loaded = source.load(dtype)
    with show_progress() as progress:
        result = run(
            loaded,
            encoder,
            text,
            samples,
            max_new_tokens=max_new_tokens,
            batch_size=batch,
            on_progress=progress,
        )
    for line in describe_mistakes(result):
        typer.echo(line)
    if output is not None:
        write_predictions(result, output)
        typer.echo(f"answers written to {output}")
    typer.echo(f"loss {result.loss:.4f} over {result.loss_tokens:,} tokens")
    typer.echo(f"exact match {result.exact} of {result.samples} ({result.exact_match:.1%})")
    if min_exact_match is not None and result.exact_match < min_exact_match:
        raise VerifyError(f"exact match {result.exact_match:.2%} is below the wanted {min_exact_match:.2%}")
