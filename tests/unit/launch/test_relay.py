"""The log of a process's output."""

import errno
import io
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from erniekit.launch.relay import LogLines, Relay

OUTPUT = (
    b"plain\nended by a terminal\r\n\x1b[1;32mcoloured\x1b[0m text\n\n"
    b"\rstep 1\r\x1b[2Kstep 2\r\x1b[2Kstep 3\r\n  indented \xe2\x82\xac\nno end"
)
KEPT = b"plain\nended by a terminal\ncoloured text\n\nstep 3\n  indented \xe2\x82\xac\nno end\n"


@given(st.lists(st.integers(0, len(OUTPUT))))
def test_output_may_be_split_anywhere(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(OUTPUT)]
    log = io.BytesIO()
    lines = LogLines(log)
    for start, end in pairwise(bounds):
        lines.feed(OUTPUT[start:end])
    lines.close()
    assert log.getvalue() == KEPT


def test_overwritten_text_is_dropped() -> None:
    log = io.BytesIO()
    lines = LogLines(log)
    for step in range(1000):
        lines.feed(f"\rstep {step}".encode())
    assert len(lines._rest) < 20
    lines.close()
    assert log.getvalue() == b"step 999\n"


def test_a_process_is_not_stopped_by_a_full_disk(tmp_path: Path) -> None:
    """It writes more than a pipe holds, and each of its lines is shown."""

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shown = tmp_path / "shown"
    with shown.open("wb") as target:
        relay = Relay(target.fileno(), Full())
        process = subprocess.Popen(
            [sys.executable, "-c", "for i in range(50_000): print('line', i)"], stdout=relay.end
        )
        relay.start()
        assert process.wait(30) == 0
        relay.finish(30)
    assert shown.read_text().splitlines()[-1] == "line 49999"
