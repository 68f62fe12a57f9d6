"""The `erniekit` command: finds the subcommand, imports only that one, and turns errors into exit statuses.

0: done. 1: an error that the user can solve, as `error: ...` on stderr. 2: wrong usage. 130: interrupted.
Anything else is a bug and keeps its traceback.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from erniekit import __version__
from erniekit.errors import ErnieKitError
from erniekit.runtime import prepare_environment


class Command(NamedTuple):
    """Where a subcommand is (module, function) and the line about it in `erniekit --help`."""

    module: str
    function: str
    summary: str

    def load(self) -> Callable[..., Any]:
        """The function itself; imports its module."""
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return function


COMMANDS = {
    "init": Command("erniekit.cli.init", "init", "Make a small model with random weights and a tokenizer."),
    "train": Command("erniekit.cli.train", "train", "Fine-tune a model as a YAML file says."),
    "eval": Command("erniekit.cli.evaluate", "evaluate", "Answer held-out chats and count exact matches."),
    "export": Command(
        "erniekit.cli.export", "export", "Write a trained model for the engines that serve it."
    ),
    "verify": Command(
        "erniekit.cli.verify", "verify", "Prove that a model directory loads and computes right."
    ),
}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"erniekit {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fine-tune ERNIE 4.5 models on PaddlePaddle."""


def _not_loaded() -> None:
    """Stands for the commands that are not asked for: their help is known without importing them."""


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The app for these arguments: the command that they name is imported, the others are not."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,  # rich takes longer to import than all the rest of `erniekit --help`
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for name, command in COMMANDS.items():
        asked = list(arguments[:1]) == [name]
        function = command.load() if asked else _not_loaded
        app.command(name, help=None if asked else command.summary, short_help=command.summary)(function)
    return app


def main() -> None:
    """Run the command line and exit."""
    arguments = sys.argv[1:]
    if arguments[:1] and arguments[0] in COMMANDS:
        prepare_environment()
    try:
        build_app(arguments)(arguments, prog_name="erniekit")
    except ErnieKitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
