"""The terminal chat: commands, streamed answers, tool results from the user; also with lines from standard input."""

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
from erniekit.display.text import visible
from erniekit.errors import ErnieKitError
from erniekit.generation.answer import Delta, DeltaKind, ToolCall

HELP = """\
/image FILE    attach an image to the next message
/video FILE    attach a video to the next message
/system TEXT   change the system message; without TEXT: remove it
/reset         clear the chat, but for the system message
/save FILE     append the chat to a JSON lines file, as a training sample
/help          show this list
/quit          quit (also Ctrl-D)
Ctrl-C ends an answer after its next token; a second Ctrl-C ends it at once.
A line that starts with a space is sent as a message, even if a / follows."""


class ChatConsole:
    """Reads lines and shows answers until the input ends.

    read: returns the line that the user enters at a prompt; raises EOFError at the end. If `out` is not a terminal,
    labels in brackets mark reasoning and answer, instead of colours.
    """

    def __init__(self, chat: Chat, out: Console, read: Callable[[str], str]) -> None:
        self._chat = chat
        self._out = out
        self._read = read
        self._kind: DeltaKind | None = None
        self._at_line_start = True

    def run(self) -> None:
        """Runs the chat until the user ends it. Errors are shown, and the chat continues."""
        while True:
            try:
                line = self._read("> ")
                if line.rstrip() in ("/quit", "/exit"):
                    return
                self._handle(line)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._out.is_terminal:
                    raise
                self._kind = None
                self._print_line("(/quit or Ctrl-D to quit)")
            except SampleError as error:
                self._print_error(error.detail)
            except ErnieKitError as error:
                self._print_error(str(error))

    def _handle(self, line: str) -> None:
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
            self._print_error(f"{name} needs a FILE")
        elif name in ("/image", "/video"):
            chat.attach("image" if name == "/image" else "video", _unquoted(argument))
            self._print_line(f"attached to the next message ({len(chat.attached)} in all)")
        elif name == "/system":
            chat.set_system(argument)
            self._print_line("system message changed" if argument else "system message removed")
        elif name == "/reset":
            chat.reset()
            self._print_line("chat cleared, but for the system message" if chat.system else "chat cleared")
        elif name == "/save":
            chat.save(Path(_unquoted(argument)).expanduser())
            self._print_line(f"appended to {argument}")
        elif name == "/help":
            self._print_line(HELP)
        else:
            self._print_error(f"unknown command {name}; /help lists the commands")

    def _results(self, reply: Reply) -> list[str]:
        """The result that the user enters for each call, "" for an empty line; an empty list if all are empty."""
        results = []
        for call in reply.answer.tool_calls:
            if call.arguments is None:
                continue
            try:
                results.append(self._read(f"result of {visible(call.name)} (empty: none)> ").strip())
            except (EOFError, KeyboardInterrupt):
                return []
        return results if any(results) else []

    def _show(self, delta: Delta) -> None:
        if delta.call is not None:
            self._print_line(_call_line(delta.call), style="cyan")
            return
        if delta.kind != self._kind:
            self._new_line()
            if not self._out.is_terminal and (delta.kind == "reasoning" or self._kind == "reasoning"):
                self._write(f"[{'reasoning' if delta.kind == 'reasoning' else 'answer'}]\n")
            elif self._kind == "reasoning":
                self._write("\n")
            self._kind = delta.kind
        self._write(visible(delta.text), style="dim" if delta.kind == "reasoning" else None)

    def _end(self, reply: Reply) -> None:
        """Shows the line after an answer: token counts, speed, and problems."""
        self._kind = None
        summary = f"prompt {reply.prompt_tokens:,} tokens in {reply.first_seconds:.1f} s"
        summary += f", answer {reply.tokens:,} tokens"
        if reply.tokens > 1:
            summary += f" at {(reply.tokens - 1) / max(reply.seconds, 1e-9):.1f} tokens/s"
        if reply.finish != "stop":
            summary += ", cut off at --max-new-tokens" if reply.finish == "length" else ", interrupted"
        self._print_line(f"({summary})")
        if reply.problem is not None:
            self._print_error(f"this turn is dropped: {reply.problem}")

    def _print_line(self, text: str, style: str = "dim") -> None:
        self._new_line()
        self._write(text + "\n", style)

    def _print_error(self, text: str) -> None:
        self._print_line(f"error: {visible(text)}", style="red")

    def _new_line(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    def _write(self, text: str, style: str | None = None) -> None:
        self._out.out(text, style=style, highlight=False, end="")
        self._at_line_start = text.endswith("\n")


def line_reader() -> Callable[[str], str]:
    """Reads lines from standard input; on a terminal, with a prompt and line editing."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return lambda prompt: input()
    with suppress(ImportError):
        importlib.import_module("readline")  # input() edits lines with it
    return input


def _call_line(call: ToolCall) -> str:
    if call.arguments is None:
        return visible(f"[a tool call that cannot be parsed ({call.error}): {call.raw}]")
    return visible(f"[calls {call.name} {json.dumps(call.arguments, ensure_ascii=False)}]")


def _unquoted(file: str) -> str:
    """A path without the quotes that terminals put around dropped files."""
    quoted = len(file) > 1 and file[0] == file[-1] and file[0] in "'\""
    return file[1:-1] if quoted else file
