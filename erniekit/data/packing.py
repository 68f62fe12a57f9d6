"""Plans an epoch: which documents share a row.

A pure function, so that a run can be continued anywhere in it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

import numpy as np

# Documents to choose from while a row is filled: enough for nearly full rows, few enough to stay random.
_LOOK_AHEAD = 256

Row = tuple[int, ...]


def plan_epoch(lengths: Sequence[int], *, max_length: int, shuffle: bool, seed: int, epoch: int) -> list[Row]:
    """Rows of indices into lengths; every document is in exactly one row, no row exceeds max_length tokens.

    Documents are taken in an order drawn from (seed, epoch), or as they stand. A row begins with the one that
    has waited longest; then, as long as any of the next 256 fits, the longest that fits is added (best fit).
    Raises ValueError when a document is longer than max_length.
    """
    if lengths and max(lengths) > max_length:
        raise ValueError(f"a document of {max(lengths)} tokens does not fit in a row of {max_length}")
    order = _order(len(lengths), shuffle, seed, epoch)
    rows: list[Row] = []
    # Waiting documents, sorted: (length, -rank), rank being the place in the order. So of equals the last is
    # the one that has waited longest.
    waiting: list[tuple[int, int]] = []
    oldest, admitted = 0, 0
    taken = np.zeros(len(lengths), bool)
    while oldest < len(order):
        if taken[oldest]:
            oldest += 1
            continue
        row, free = [], max_length
        pick: tuple[int, int] | None = (lengths[order[oldest]], -oldest)
        while pick is not None:
            while admitted < len(order) and len(waiting) < _LOOK_AHEAD:
                insort(waiting, (lengths[order[admitted]], -admitted))
                admitted += 1
            del waiting[bisect_left(waiting, pick)]
            taken[-pick[1]] = True
            row.append(order[-pick[1]])
            free -= pick[0]
            fitting = bisect_right(waiting, (free, 1))
            pick = waiting[fitting - 1] if fitting else None
        rows.append(tuple(row))
    return rows


def _order(count: int, shuffle: bool, seed: int, epoch: int) -> list[int]:
    if not shuffle:
        return list(range(count))
    # Sorted raw random numbers: NumPy promises the bits of Philox for ever, but not how it shuffles.
    draws = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    order: list[int] = np.argsort(draws, kind="stable").tolist()
    return order
