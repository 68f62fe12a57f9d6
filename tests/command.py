"""Runs the command line in this process, as a user would type it: Paddle is imported once for all tests."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest import mock

from erniekit.cli.main import main


def erniekit(*arguments: object, stdin: str = "") -> CompletedProcess[str]:
    """Exit status, output and error output of `erniekit ARGUMENTS`. A bug comes up as its own exception.

    stdin: what the command reads from standard input, which is no terminal.
    """
    words = ["erniekit", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    status: object = None
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code
    assert status is None or isinstance(status, int), f"{words} ended with {status!r}"
    return CompletedProcess(words, status or 0, out.getvalue(), err.getvalue())
