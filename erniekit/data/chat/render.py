"""Renders chats with the Jinja program of a checkpoint, in a process with limited time and memory.

The program is not trusted. Jinja's sandbox hides Python's objects from it, but does not stop it from running forever or
using all memory: `10 ** (10 ** 9)`, or nested loops. This file runs as a separate process, which only imports jinja2,
reads JSON and writes JSON. The program gets the same variables as in transformers' apply_chat_template.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

_CPU_SECONDS = 5
_WALL_SECONDS = 600  # enough for a busy machine
_MEMORY = 1 << 30
_MAX_CHARACTERS = 1 << 20
_MAX_ERROR = 300


class RenderError(Exception):
    """The program failed, or exceeded a limit."""


def render_chat(
    program: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    tokens: Mapping[str, str] | None = None,
) -> str:
    """The prompt for the assistant's next answer. tokens: special tokens by name. Raises RenderError."""
    if len(program) > _MAX_CHARACTERS:
        raise RenderError(f"it has more than {_MAX_CHARACTERS:,} characters")
    values = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": True}
    request = {"program": program, "values": {**(tokens or {}), **values}, "seconds": _CPU_SECONDS}
    return _render(json.dumps(request))


@lru_cache(maxsize=64)
def _render(request: str) -> str:
    try:
        finished = subprocess.run(
            [sys.executable, "-P", __file__],
            input=request.encode(),
            capture_output=True,
            timeout=_WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise RenderError("it takes too long") from None
    if finished.returncode < 0:
        raise RenderError(f"it takes more than {_CPU_SECONDS} s, or too much memory")
    try:
        answer: dict[str, str] = json.loads(finished.stdout)
    except ValueError:
        detail = finished.stderr.decode(errors="replace").strip()[-_MAX_ERROR:]
        raise RenderError(f"the process that renders it failed: {detail}") from None
    if "error" in answer:
        raise RenderError(answer["error"])
    return answer["text"]


def _rendered(program: str, values: Mapping[str, Any]) -> str:
    from datetime import datetime

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag around the assistant's text, which does not change it."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's name and type)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    pieces, length = [], 0
    for piece in environment.from_string(program).generate(**values):
        pieces.append(piece)
        length += len(piece)
        if length > _MAX_CHARACTERS:
            raise ValueError(f"it writes more than {_MAX_CHARACTERS:,} characters")
    return "".join(pieces)


def _limit(seconds: int) -> None:
    """Limit CPU time and memory of this process, if the system supports it."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _answer() -> dict[str, str]:
    request = json.loads(sys.stdin.buffer.read())
    _limit(request["seconds"])
    try:
        return {"text": _rendered(request["program"], request["values"])}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:  # a program can fail in any way
        kind = type(error).__name__
        # A TemplateError comes from raise_exception: its message is the program's own text.
        return {"error": (str(error) if kind == "TemplateError" else f"{kind}: {error}")[:_MAX_ERROR]}


if __name__ == "__main__":
    sys.stdout.buffer.write(json.dumps(_answer()).encode())
