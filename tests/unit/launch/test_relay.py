"""What of a process's output is kept in its log."""

import io
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from erniekit.launch.relay import LogLines

OUTPUT = (
    b"plain\nended by a terminal\r\n\x1b[1;32mcoloured\x1b[0m text\n\n"
    b"\rstep 1\r\x1b[2Kstep 2\r\x1b[2Kstep 3\r\n  indented \xe2\x82\xac\nno end"
)
KEPT = b"plain\nended by a terminal\ncoloured text\n\nstep 3\n  indented \xe2\x82\xac\nno end\n"


@given(st.lists(st.integers(0, len(OUTPUT))))
def test_however_it_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(OUTPUT)]
    log = io.BytesIO()
    lines = LogLines(log)
    for start, end in pairwise(places):
        lines.feed(OUTPUT[start:end])
    lines.close()
    assert log.getvalue() == KEPT


def test_what_is_drawn_over_is_forgotten() -> None:
    log = io.BytesIO()
    lines = LogLines(log)
    for step in range(1000):
        lines.feed(f"\rstep {step}".encode())
    assert len(lines._rest) < 20
    lines.close()
    assert log.getvalue() == b"step 999\n"
