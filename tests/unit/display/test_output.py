"""Output that cannot be written ends nothing."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest

from erniekit.display.output import forgiving_output


class Failing(io.StringIO):
    """A stream on a full disk, which has room again later."""

    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)

    def flush(self) -> None:
        if self.is_full:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_lines_are_lost_while_a_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Failing()
    monkeypatch.setattr(sys, "stdout", stream)
    with forgiving_output():
        print("lost", flush=True)
        stream.is_full = False
        print("there", flush=True)
    assert stream.getvalue().splitlines()[-1:] == ["there"]
    assert sys.stdout is stream
    with pytest.raises(OSError, match="No space left"):
        stream.is_full = True
        print("outside", flush=True)


def test_characters_that_the_encoding_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="gbk")
    monkeypatch.setattr(sys, "stdout", stream)
    with forgiving_output():
        print("数据/😀.jsonl:3", flush=True)
    assert stream.buffer.getvalue().decode("gbk") == "数据/\\U0001f600.jsonl:3\n"


# Ends with a status of its own: that of a flush at the end would be 120.
WRITER = """
import sys
from erniekit.display.output import forgiving_output
with forgiving_output():
    for number in range(20_000):
        print("line", number, flush=number % 7 == 0)
sys.exit(3)
"""


def test_a_reader_that_has_ended() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (3, "")


# The pipe is full, and the process waits in `print` when the signal comes: Python's buffer refuses a second call.
INTERRUPTED = """
import signal, sys
from erniekit.display.output import forgiving_output
with forgiving_output():
    signal.signal(signal.SIGUSR1, lambda *_: (print("from the handler", flush=True), sys.stderr.write("handled\\n")))
    print("x" * 1_000_000, flush=True)
    print("end", flush=True)
"""


def test_a_handler_that_prints_while_a_line_is_printed() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGUSR1)
    assert process.stderr.readline() == "handled\n"
    assert process.stdout.read().endswith("end\n")
    assert (process.wait(), process.stderr.read()) == (0, "")
