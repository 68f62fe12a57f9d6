"""Plans which documents share a row, and which rank computes which row.

Pure functions, so that a run can resume anywhere.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# Number of documents to choose from: enough for nearly full rows, few enough to keep the order random.
_LOOK_AHEAD = 256

Row = tuple[int, ...]


def plan_rows(
    order: Sequence[int] | npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    patches: npt.NDArray[np.int64],
    max_length: int,
) -> list[Row]:
    """Pack the documents in `order` (indices, which may repeat) into rows of at most max_length tokens.

    lengths, patches: tokens and image patches of each document. A row begins with the document that has waited longest.
    Then the longest of the next 256 documents that fits is added (best fit), until none fits. Documents with images are
    added until the row has its share of the waiting patches, then documents without images, so that the vision tower
    has a similar load in every row. Filling a row takes precedence over balancing patches. Raises ValueError for a
    document longer than max_length.
    """
    order = np.asarray(order, np.int64)
    if len(order) and int(lengths[order].max()) > max_length:
        raise ValueError(
            f"a document of {int(lengths[order].max())} tokens does not fit in a row of {max_length}"
        )
    window = _Window(order.tolist(), lengths[order].tolist(), patches[order].tolist())
    rows: list[Row] = []
    while window.refill():
        share = window.waiting_patches / max(1.0, window.waiting_tokens / max_length)
        row, free, seen = [], max_length, 0
        rank: int | None = window.oldest
        while rank is not None:
            window.take(rank)
            row.append(window.order[rank])
            free -= window.lengths[rank]
            seen += window.patches[rank]
            window.refill()
            rank = window.longest(free, share - seen, begun=seen > 0)
        rows.append(tuple(row))
    return rows


@dataclass
class _Window:
    """The waiting documents, identified by their rank: their index in `order`.

    text, media: waiting documents without and with images or videos, as (length, -rank), sorted: among documents of one
    length, the one that has waited longest comes last.
    """

    order: list[int]
    lengths: list[int]
    patches: list[int]
    text: list[tuple[int, int]] = field(default_factory=list)
    media: list[tuple[int, int]] = field(default_factory=list)
    oldest: int = 0
    admitted: int = 0
    waiting_tokens: int = 0
    waiting_patches: int = 0

    def __post_init__(self) -> None:
        self._taken = [False] * len(self.order)

    def refill(self) -> bool:
        """Admit documents up to the look-ahead; False if none is left."""
        while self.admitted < len(self.order) and len(self.text) + len(self.media) < _LOOK_AHEAD:
            rank = self.admitted
            insort(self._list(rank), (self.lengths[rank], -rank))
            self.waiting_tokens += self.lengths[rank]
            self.waiting_patches += self.patches[rank]
            self.admitted += 1
        while self.oldest < len(self.order) and self._taken[self.oldest]:
            self.oldest += 1
        return self.oldest < len(self.order)

    def take(self, rank: int) -> None:
        """Remove a waiting document."""
        waiting = self._list(rank)
        del waiting[bisect_left(waiting, (self.lengths[rank], -rank))]
        self._taken[rank] = True
        self.waiting_tokens -= self.lengths[rank]
        self.waiting_patches -= self.patches[rank]

    def longest(self, free: int, share: float, begun: bool) -> int | None:
        """The rank of the next document for a row with `free` tokens left; None if none fits.

        share: patches that the row still lacks; begun: whether it has any patches. Prefers the longest document with at
        most `share` patches (any number if the row has none yet), then the longest without images, then any.
        """
        fitting = self.media[: bisect_right(self.media, (free, 1))]
        if share > 0:
            for _, place in reversed(fitting):
                if self.patches[-place] <= share or not begun:
                    return -place
        text = bisect_right(self.text, (free, 1))
        if text:
            return -self.text[text - 1][1]
        return -fitting[-1][1] if fitting else None

    def _list(self, rank: int) -> list[tuple[int, int]]:
        return self.media if self.patches[rank] else self.text


def spread(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Distribute the rows of a step over ranks so that the largest total cost of a rank is small.

    costs: the cost of each row, such as its patches. Returns the rows of each rank. The numbers of rows of two ranks
    differ by at most one. Greedy, longest processing time first; then two rows are exchanged while that lowers the
    larger total of their ranks.
    """
    most = -(-len(costs) // ranks)
    full = len(costs) - (most - 1) * ranks  # number of ranks with `most` rows
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for row in sorted(range(len(costs)), key=lambda row: (-costs[row], row)):
        complete = sum(len(share) == most for share in shares)
        limit = most if complete < full else most - 1
        open_ranks = [rank for rank in range(ranks) if len(shares[rank]) < limit]
        rank = min(open_ranks, key=lambda rank: (loads[rank], len(shares[rank]), rank))
        shares[rank].append(row)
        loads[rank] += costs[row]
    while _exchange(costs, shares, loads):
        pass
    return [sorted(share) for share in shares]


def _exchange(costs: Sequence[int], shares: list[list[int]], loads: list[int]) -> bool:
    """Exchange one row of the most loaded rank for a cheaper one; False if no exchange helps."""
    top = max(range(len(loads)), key=lambda rank: (loads[rank], -rank))
    best: tuple[int, int, int, int] | None = None
    for rank in range(len(loads)):
        for i, mine in enumerate(shares[top]):
            for j, other in enumerate(shares[rank]):
                moved = costs[mine] - costs[other]
                worst = max(loads[top] - moved, loads[rank] + moved)
                if moved > 0 and worst < loads[top] and (best is None or worst < best[0]):
                    best = (worst, rank, i, j)
    if best is None:
        return False
    _, rank, i, j = best
    moved = costs[shares[top][i]] - costs[shares[rank][j]]
    shares[top][i], shares[rank][j] = shares[rank][j], shares[top][i]
    loads[top] -= moved
    loads[rank] += moved
    return True
