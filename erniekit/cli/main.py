"""The `erniekit` command: finds the subcommand, imports only that one, and turns errors into exit statuses.

0: success. 1: an error that the user can fix. 2: wrong usage. 130: interrupted. Errors are printed as `error: ...` on
stderr. Anything else is a bug and keeps its traceback.
"""

import errno
import functools
import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from erniekit import __version__
from erniekit.cli.train_options import explain_option, resume_as_flag
from erniekit.display.text import clipped
from erniekit.errors import ErnieKitError
from erniekit.paths import expand_argument
from erniekit.runtime import prepare_environment


class Command(NamedTuple):
    """A subcommand: its module and function, and its line in `erniekit --help`."""

    module: str
    function: str
    summary: str

    def load(self) -> Callable[..., Any]:
        """Import the module and return the function."""
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return function


class Group(NamedTuple):
    """Subcommands under a common name, and its line in `erniekit --help`."""

    summary: str
    commands: dict[str, Command]


COMMANDS = {
    "init": Command("erniekit.cli.init", "init", "Create a small model with random weights and a tokenizer."),
    "download": Command("erniekit.cli.download", "download", "Download a model from the Hugging Face Hub."),
    "plan": Command(
        "erniekit.cli.plan", "plan", "Predict memory and time of a run, without GPUs or weights."
    ),
    "train": Command("erniekit.cli.train", "train", "Fine-tune a model from a YAML file."),
    "replay": Command(
        "erniekit.cli.replay", "replay", "Recompute the saved rows of a step, to find the source of NaN."
    ),
    "eval": Command(
        "erniekit.cli.evaluate", "evaluate", "Evaluate a model: loss, perplexity and generated answers."
    ),
    "chat": Command("erniekit.cli.chat", "chat", "Chat with a model in the terminal."),
    "serve": Command(
        "erniekit.cli.serve", "serve", "Serve a model through an OpenAI-compatible API, to try it out."
    ),
    "export": Command("erniekit.cli.export", "export", "Write a trained model for inference engines."),
    "convert": Command("erniekit.cli.convert", "convert", "Write a model in another layout of weights."),
    "push": Command("erniekit.cli.push", "push", "Upload a model to the Hugging Face Hub."),
    "doctor": Command(
        "erniekit.cli.doctor", "doctor", "Check this machine: installation, kernels, processes."
    ),
    "verify": Command(
        "erniekit.cli.verify", "verify", "Verify that a model directory loads and computes correctly."
    ),
}
GROUPS = {
    "config": Group(
        "Convert configurations of other trainers.",
        {
            "convert": Command(
                "erniekit.cli.config_convert",
                "convert",
                "Convert a configuration of ERNIEKit, LLaMA-Factory or ms-swift.",
            ),
        },
    ),
    "data": Group(
        "Check, preview and convert data files.",
        {
            "check": Command(
                "erniekit.cli.data_check", "check", "Check data files: contents, lengths and errors."
            ),
            "preview": Command(
                "erniekit.cli.data_preview", "preview", "Show samples as the model sees them."
            ),
            "convert": Command(
                "erniekit.cli.data_convert",
                "convert",
                "Convert data of any format to format messages, as JSON lines.",
            ),
        },
    ),
}
OTHER_COMMANDS = {
    "server": "`erniekit serve MODEL` serves a model; with --commands, it prints the commands for vLLM and FastDeploy",
    "api": "`erniekit serve MODEL` serves OpenAI's API",
    "deploy": "`erniekit serve MODEL` serves OpenAI's API; with --commands, it prints the commands for engines",
    "webui": "there is no web page for training; a run is a YAML file, and `erniekit train --help` has examples",
    "webchat": "`erniekit chat MODEL` chats in the terminal; `erniekit serve MODEL --cors '*'` serves web pages",
    "split": "`erniekit export RUN --output DIR --max-shard-size 5GB` writes weight files of that size",
    "merge-lora": "`erniekit export RUN --output DIR` merges adapters",
    "env": "`erniekit doctor` reports versions, devices, drivers and what works on this machine",
    "sft": "`erniekit train run.yaml` trains; `erniekit config convert` converts a file of ms-swift",
    "pt": "`erniekit train run.yaml` trains on plain text, too; `erniekit config convert` converts a file of ms-swift",
    "rlhf": "`erniekit train run.yaml` with task: dpo trains on preferences",
    "infer": "`erniekit chat MODEL` chats with a model; `erniekit eval MODEL --data FILE` answers the chats of a file",
    "help": "`erniekit --help` lists the commands",
    "version": "`erniekit --version` prints the version",
}
"""Commands of ERNIEKit, LLaMA-Factory and ms-swift that have other names here."""


_COMPLETE = "_ERNIEKIT_COMPLETE"
"""Set by the script of --install-completion."""


# A full disk or quota, a disk that is read-only, fails or has gone, too many open files, a path that is too long: no
# traceback helps.
_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE),
    errno.ENAMETOOLONG,
}

_LONGEST_PATH = 300  # characters


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
    """Placeholder for commands that are not called. Their help is shown without importing them."""


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The app for these arguments. Only the command that they name is imported."""
    app = _new_app(completion=True)
    app.callback()(_root)
    _add_commands(app, COMMANDS, arguments)
    for name, group in GROUPS.items():
        inner = _new_app()
        _add_commands(inner, group.commands, arguments[1:] if list(arguments[:1]) == [name] else ())
        app.add_typer(inner, name=name, help=group.summary)
    return app


def _new_app(*, completion: bool = False) -> typer.Typer:
    return typer.Typer(
        add_completion=completion,
        no_args_is_help=True,
        rich_markup_mode=None,  # rich takes longer to import than the rest of `erniekit --help`
        pretty_exceptions_enable=False,
    )


def _add_commands(app: typer.Typer, commands: Mapping[str, Command], arguments: Sequence[str]) -> None:
    for name, command in commands.items():
        asked = list(arguments[:1]) == [name]
        function = _with_paths_expanded(command.load()) if asked else _not_loaded
        app.command(name, help=None if asked else command.summary, short_help=command.summary)(function)


def _with_paths_expanded(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with `~` and variables expanded in every `Path` argument: shells do not expand `--output=~`."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        return command(
            *(expand_argument(value) for value in arguments),
            **{name: expand_argument(value) for name, value in options.items()},
        )

    return run


def words_to_complete(environment: Mapping[str, str]) -> list[str]:
    """The words after `erniekit` of the line that a shell completes. Empty where it completes nothing."""
    # Variables of typer's scripts, of bash and of other shells.
    line = environment.get("COMP_WORDS") or environment.get("_TYPER_COMPLETE_ARGS", "")
    return line.split()[1:] if _COMPLETE in environment else []


def main() -> None:
    """Run the command line and exit."""
    if _COMPLETE in os.environ:
        # The shell's words are not in sys.argv, and a command has to be imported for its options.
        build_app(words_to_complete(os.environ))(prog_name="erniekit")
    arguments = resume_as_flag(sys.argv[1:])
    if arguments[:1] and arguments[0] in OTHER_COMMANDS:
        print(f"error: there is no command {arguments[0]}: {OTHER_COMMANDS[arguments[0]]}", file=sys.stderr)
        sys.exit(2)
    if arguments[:1] == ["train"]:
        problem = explain_option(arguments[1:], COMMANDS["train"].load())
        if problem is not None:
            print(f"error: {problem}", file=sys.stderr)
            sys.exit(2)
    if arguments[:1] and (arguments[0] in COMMANDS or arguments[0] in GROUPS):
        prepare_environment()
    print_error = _error_printer(arguments)
    try:
        sys.exit(build_app(arguments)(arguments, prog_name="erniekit", standalone_mode=False))
    except typer.TyperException as error:
        print(_usage_error(error), end="", file=sys.stderr)
        sys.exit(error.exit_code)
    except ErnieKitError as error:
        print_error("\n".join([str(error), *getattr(error, "__notes__", ())]))
        sys.exit(1)
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        where = "" if error.filename is None else f"{clipped(str(error.filename), _LONGEST_PATH)}: "
        print_error(f"{where}{error.strerror}")
        sys.exit(1)


def _usage_error(error: typer.TyperException) -> str:
    """typer's text of an error on the command line, with the message in the style of all other errors."""
    text = io.StringIO()
    error.show(text)  # type: ignore[attr-defined]  # a method of click's exceptions, which are private to typer
    return re.sub(
        r"^Error: (.)", lambda found: f"error: {found[1].lower()}", text.getvalue(), flags=re.MULTILINE
    )


def _error_printer(arguments: Sequence[str]) -> Callable[[str], None]:
    """Prints the error that ends this process. Call before the command changes the environment."""
    if arguments[:1] == ["train"] and "SLURM_STEP_ID" in os.environ:
        from erniekit.launch.task_errors import print_error, slurm_task

        return functools.partial(print_error, task=slurm_task(os.environ))
    return lambda message: print(f"error: {message}", file=sys.stderr)
