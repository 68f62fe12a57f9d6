"""Rows that processes share come out as they do on one, and take a share of its memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniekit.parallel.context_parallel import shard_media
from tests.distributed.context_checks import memory_checks, row_checks
from tests.distributed.processes import run

PAIRS_OF_PATCHES = st.integers(1, 9).map(lambda number: 2 * number)
GRIDS = st.lists(
    st.tuples(st.sampled_from([1, 2, 6, 20]), PAIRS_OF_PATCHES, PAIRS_OF_PATCHES), min_size=0, max_size=9
)


@pytest.mark.parametrize("world", [2, 4])
def test_rows_come_out_as_on_one_process(world: int) -> None:
    results = run(world, row_checks, world)
    assert len({rank["checks"] for rank in results}) == 1
    assert results[0]["checks"] >= 13


def test_a_long_row_takes_half_of_the_memory() -> None:
    for found in run(2, memory_checks, 2, 512):
        assert found["shared"] < 0.55 * found["whole"]


@given(GRIDS, st.integers(1, 5))
def test_images_and_pairs_of_frames_are_shared_out(grids: list[tuple[int, int, int]], size: int) -> None:
    shares = shard_media(np.array(grids, np.int32).reshape(-1, 3), size, 2)
    costs = shares.grid_thw.prod(1)
    assert set(shares.grid_thw[:, 0]) <= {1, 2}
    whole = [grid for grid in grids for _ in range(max(1, grid[0] // 2))]
    assert shares.grid_thw[:, 1:].tolist() == [list(grid[1:]) for grid in whole]
    for bounds, values in ((shares.patches, costs), (shares.tokens, shares.grid_thw[:, 1:].prod(1) // 4)):
        parts = np.split(values, shares.units[1:-1])
        assert np.diff(bounds).tolist() == [part.sum() for part in parts]
        assert bounds[-1] == values.sum()
    # Nobody has more than an even share and half of a unit at each end.
    assert max(np.diff(shares.patches)) <= costs.sum() / size + max(costs, default=0)
