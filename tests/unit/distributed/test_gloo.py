"""The partner of a rank in each turn of a pairwise exchange."""

import pytest

from erniekit.distributed.gloo import partner


@pytest.mark.parametrize("size", [2, 4, 6, 8, 10, 64])
def test_every_pair_of_ranks_exchanges_once(size: int) -> None:
    pairs = set()
    for turn in range(size - 1):
        for rank in range(size):
            other = partner(rank, turn, size)
            assert other != rank
            assert partner(other, turn, size) == rank
            pairs.add((rank, other))
    assert len(pairs) == size * (size - 1)
