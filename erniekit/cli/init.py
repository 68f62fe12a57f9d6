"""`erniekit init`: creates a small model with random weights and a new tokenizer."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.cli.options import Output
from erniekit.create.shapes import SHAPES

Shape = Annotated[
    str, typer.Argument(metavar="SHAPE", help=f"One of {', '.join(SHAPES)}.", show_default=False)
]
TokenizerText = Annotated[
    list[Path],
    typer.Option(
        "--tokenizer-text",
        metavar="FILE",
        help="File to train the tokenizer on: plain text, .json or .jsonl. Can be repeated.",
        show_default=False,
    ),
]
VocabSize = Annotated[
    int | None,
    typer.Option(
        "--vocab-size",
        metavar="N",
        help="Vocabulary size: rows of the embedding, and maximum number of tokens. Default: from the shape "
        "(512 for tiny shapes).",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the random weights.")]
Std = Annotated[
    float | None,
    typer.Option(
        "--std",
        metavar="X",
        help="Standard deviation of the initial weights. Default: 1 / sqrt(hidden_size).",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of config.json, such as num_hidden_layers=4 or vision_config.depth=3. Can be repeated.",
        show_default=False,
    ),
]
NoWeights = Annotated[bool, typer.Option("--no-weights", help="Write only config.json and the tokenizer.")]


def init(
    shape: Shape,
    output: Output,
    tokenizer_text: TokenizerText,
    vocab_size: VocabSize = None,
    seed: Seed = 0,
    std: Std = None,
    settings: Settings = None,
    no_weights: NoWeights = False,
) -> None:
    """Create a small model with random weights and a tokenizer.

    The directory has the layout of the released checkpoints and works with every other command. The same arguments
    produce the same bytes.

    Examples:

    \b
      erniekit init tiny-vl --output runs/tiny --tokenizer-text data/digits/train.jsonl
      erniekit init tiny-moe --output runs/moe --tokenizer-text notes.txt --vocab-size 2048 --set moe_k=3
    """
    from erniekit.create.create import create_model

    made = create_model(
        shape,
        output,
        tokenizer_text,
        vocab_size=vocab_size,
        seed=seed,
        std=std,
        overrides=settings or [],
        weights=not no_weights,
    )
    size = "no weights written" if no_weights else f"{made.nbytes / 1e6:,.1f} MB"
    typer.echo(
        f"{output}: {shape}, {made.num_parameters:,} parameters ({size}), "
        f"{made.num_tokens:,} tokens in a vocabulary of {made.config.vocab_size:,}, seed {seed}"
    )
