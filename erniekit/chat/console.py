"""A chat in a terminal, or with lines from standard input: commands, answers as they come, tools run by the user."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from erniekit.chat.session import Chat, Reply
from erniekit.data.chat.conversation import SampleError
from erniekit.errors import ErnieKitError
from erniekit.generation.answer import Delta, DeltaKind, ToolCall
from erniekit.terminal import printable

HELP = """\
/image FILE    a picture for the next message
/video FILE    a video for the next message
/system TEXT   another system message; without TEXT: none
/reset         forget what was said
/save FILE     append the chat to a file of JSON lines, as a sample to train on
/help          this list
/quit          end (also Ctrl-D)
Ctrl-C ends an answer early, after its next token; a second one at once.
A line that begins with a space is sent even if a / follows."""


class ChatConsole:
    """Reads lines and shows answers until the input ends.

    read: gives a line for a prompt; raises EOFError at the end. With `out` on no terminal, kinds of text are told
    apart by words in brackets in place of colours.
    """

    def __init__(self, chat: Chat, out: Console, read: Callable[[str], str]) -> None:
        self._chat = chat
        self._out = out
        self._read = read
        self._kind: DeltaKind | None = None
        self._at_line_start = True

    def run(self) -> None:
        """The whole session. What cannot be done is told, and the chat goes on."""
        while True:
            try:
                line = self._read("> ")
                if line.rstrip() in ("/quit", "/exit"):
                    return
                self._take(line)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._out.is_terminal:
                    raise
                self._kind = None
                self._tell("(/quit or Ctrl-D to end)")
            except SampleError as error:
                self._complain(error.detail)
            except ErnieKitError as error:
                self._complain(str(error))

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            command, _, argument = line.partition(" ")
            self._command(command.rstrip(), argument.strip())
        elif line.strip():
            reply = self._chat.ask(line.strip(), self._show)
            self._end(reply)
            while reply.problem is None and (results := self._results(reply)):
                reply = self._chat.give_results(results, self._show)
                self._end(reply)

    def _command(self, name: str, argument: str) -> None:
        chat = self._chat
        if name in ("/image", "/video", "/save") and not argument:
            self._complain(f"{name} needs a FILE")
        elif name in ("/image", "/video"):
            chat.attach("image" if name == "/image" else "video", _unquoted(argument))
            self._tell(f"goes with the next message ({len(chat.attached)} attached)")
        elif name == "/system":
            chat.set_system(argument)
            self._tell("system message set" if argument else "no system message")
        elif name == "/reset":
            chat.reset()
            self._tell(
                "everything but the system message is forgotten" if chat.system else "all is forgotten"
            )
        elif name == "/save":
            chat.save(Path(_unquoted(argument)).expanduser())
            self._tell(f"appended to {argument}")
        elif name == "/help":
            self._tell(HELP)
        else:
            self._complain(f"there is no command {name}; /help lists them")

    def _results(self, reply: Reply) -> list[str]:
        """What the user gives back for each call, an empty line for an empty result; nothing if all are empty."""
        results = []
        for call in reply.answer.tool_calls:
            if call.arguments is None:
                continue
            try:
                results.append(self._read(f"result of {printable(call.name)} (empty: none)> ").strip())
            except (EOFError, KeyboardInterrupt):
                return []
        return results if any(results) else []

    def _show(self, delta: Delta) -> None:
        if delta.call is not None:
            self._tell(_described(delta.call), style="cyan")
            return
        if delta.kind != self._kind:
            self._new_line()
            if not self._out.is_terminal and (delta.kind == "reasoning" or self._kind == "reasoning"):
                self._write(f"[{'reasoning' if delta.kind == 'reasoning' else 'answer'}]\n")
            elif self._kind == "reasoning":
                self._write("\n")
            self._kind = delta.kind
        self._write(printable(delta.text), style="dim" if delta.kind == "reasoning" else None)

    def _end(self, reply: Reply) -> None:
        """The line after an answer: how fast it came, and what is wrong with it."""
        self._kind = None
        told = f"prompt {reply.prompt_tokens:,} tokens in {reply.first_seconds:.1f} s, answer {reply.tokens:,} tokens"
        if reply.tokens > 1:
            told += f" at {(reply.tokens - 1) / max(reply.seconds, 1e-9):.1f} tokens/s"
        if reply.finish != "stop":
            told += ", cut off at --max-new-tokens" if reply.finish == "length" else ", interrupted"
        self._tell(f"({told})")
        if reply.problem is not None:
            self._complain(f"this turn is not kept: {reply.problem}")

    def _tell(self, text: str, style: str = "dim") -> None:
        self._new_line()
        self._write(text + "\n", style)

    def _complain(self, text: str) -> None:
        self._tell(f"error: {printable(text)}", style="red")

    def _new_line(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    def _write(self, text: str, style: str | None = None) -> None:
        self._out.out(text, style=style, highlight=False, end="")
        self._at_line_start = text.endswith("\n")


def line_reader() -> Callable[[str], str]:
    """Reads lines from standard input, on a terminal with a prompt and with editing."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return lambda prompt: input()
    with suppress(ImportError):
        importlib.import_module("readline")  # input() edits lines with it
    return input


def _described(call: ToolCall) -> str:
    if call.arguments is None:
        return printable(f"[a tool call that cannot be read ({call.error}): {call.raw}]")
    return printable(f"[calls {call.name} {json.dumps(call.arguments, ensure_ascii=False)}]")


def _unquoted(file: str) -> str:
    """A path as it was typed or dropped into the terminal."""
    quoted = len(file) > 1 and file[0] == file[-1] and file[0] in "'\""
    return file[1:-1] if quoted else file
