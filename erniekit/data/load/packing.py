"""Plans which documents share a row, and which rows go to which rank.

Pure functions, so that a run can be continued anywhere in its plan.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# Documents to choose from while a row is filled: enough for nearly full rows, few enough to stay random.
_LOOK_AHEAD = 256

Row = tuple[int, ...]


def plan_rows(
    order: Sequence[int] | npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    patches: npt.NDArray[np.int64],
    max_length: int,
) -> list[Row]:
    """Rows of the documents that `order` names, each as often as it stands there; none exceeds max_length tokens.

    lengths, patches: of each document that can be named, in tokens and in patches of its images. A row
    begins with the document that has waited longest; then, as long as any of the next 256 fits, the longest
    that fits is added (best fit). Documents with images are taken until the row has its share of the
    patches that wait, then documents without, so that the vision tower has about as much to do in every row;
    a full row comes before an even one. Raises ValueError when a document is longer than max_length.
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
    """The documents from which rows are filled, by their ranks: places in `order`.

    text, media: waiting documents without and with images or videos, sorted by (length, -rank): of equals the last
    is the one that has waited longest.
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
        """Let documents in up to the look-ahead; False when none is left."""
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
        """The next document of a row with `free` tokens left, None when none fits.

        share: patches that the row still lacks; begun: whether it has any. First the longest with images of
        no more than that (or of any number, in a row that has none), then the longest without, then any.
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
    """Which rows of a step each rank gets, so that the largest sum of costs is small.

    costs: of each row, such as its patches. Ranks get equal numbers of rows, but for a rest that does not divide.
    Longest processing time first, then exchanges of two rows as long as one lowers the larger sum of its two
    ranks.
    """
    most = -(-len(costs) // ranks)
    full = len(costs) - (most - 1) * ranks  # ranks that may hold `most` rows
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
    """Exchange one row of the most loaded rank for a cheaper one; False when that helps nowhere."""
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
