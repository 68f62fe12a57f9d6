"""Lengths of documents: percentiles, and a histogram with edges at powers of two."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PERCENTILES = (50, 90, 99)
_SHORTEST_STEP = 16


class Bucket(NamedTuple):
    """Documents of at most `up_to`, and longer than the bucket before."""

    up_to: int
    documents: int


@dataclass(frozen=True)
class Lengths:
    """One length per document, eight bytes each."""

    values: array[int] = field(default_factory=lambda: array("q"))

    def add(self, value: int) -> None:
        """Adds a document."""
        self.values.append(value)

    @property
    def numpy(self) -> npt.NDArray[np.int64]:
        """int64 [D], a copy."""
        return np.array(self.values, np.int64)

    def over(self, limit: int) -> int:
        """Number of documents longer than `limit`."""
        return int(np.count_nonzero(self.numpy > limit))

    def total(self) -> int:
        """The sum of all lengths."""
        return int(self.numpy.sum())

    def longest(self) -> int:
        """The longest length; 0 without documents."""
        return max(self.values, default=0)

    def percentile(self, percent: float) -> int:
        """The smallest length that at least `percent` percent of the documents do not exceed; 0 without documents."""
        if not self.values:
            return 0
        return int(np.percentile(self.numpy, percent, method="inverted_cdf"))

    def buckets(self, edges: Sequence[int]) -> list[Bucket]:
        """Documents by edge. edges: ascending, the last at least the longest length."""
        ends = np.searchsorted(np.sort(self.numpy), np.asarray(edges, np.int64), "right")
        return [Bucket(*pair) for pair in zip(edges, np.diff(ends, prepend=0).tolist(), strict=True)]


def edges_for(longest: int) -> list[int]:
    """The edges of a histogram up to `longest`: 16, 32, 64, ..."""
    edges = [_SHORTEST_STEP]
    while edges[-1] < longest:
        edges.append(edges[-1] * 2)
    return edges
