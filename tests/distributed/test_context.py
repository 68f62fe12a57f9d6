"""Rows that processes share come out as they do on one."""

import pytest

from tests.distributed.context_checks import row_checks
from tests.distributed.processes import run


@pytest.mark.parametrize("world", [2, 4])
def test_rows_come_out_as_on_one_process(world: int) -> None:
    results = run(world, row_checks, world)
    assert len({rank["checks"] for rank in results}) == 1
