"""Whom a rank meets in which turn."""

import pytest

from erniekit.distributed.gloo import partner


@pytest.mark.parametrize("size", [2, 4, 6, 8, 10, 64])
def test_everybody_meets_everybody_once(size: int) -> None:
    met = set()
    for turn in range(size - 1):
        for rank in range(size):
            other = partner(rank, turn, size)
            assert other != rank
            assert partner(other, turn, size) == rank
            met.add((rank, other))
    assert len(met) == size * (size - 1)
