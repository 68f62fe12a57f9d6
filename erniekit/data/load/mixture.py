"""The order in which an epoch takes the samples of its sources.

Pure functions of sizes, weights, seed and epoch, so that a run can be continued anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from erniekit.config.choices import Mix, Stop
from erniekit.data.load.packing import Row

Order = npt.NDArray[np.int64]
# In the place of a source's number, for the order of rows.
_ROWS = 1 << 32


@dataclass(frozen=True, slots=True)
class Mixture:
    """How sources are mixed.

    mix: "concat", every sample once; "interleave", a sample of each source in turn, until the first source
    has been used up or until all have (shorter ones start again); "weighted", as many samples as all sources
    have together, drawn in proportion to `weights` (positive, one a source). shuffle: a new order in every
    epoch, from `seed`.
    """

    mix: Mix
    stop: Stop
    weights: tuple[float, ...]
    shuffle: bool
    seed: int

    def order(self, sizes: Sequence[int], epoch: int) -> Order:
        """Samples of an epoch, as indices into all sources one after the other.

        sizes: samples of each source. Where an epoch does not take all of a source, the next epoch goes on
        with what is left of it, so that nothing is left out for ever.
        """
        total = sum(sizes)
        if self.mix == "concat":
            return permutation(total, self.seed, epoch) if self.shuffle else np.arange(total)
        counts = self._counts(sizes, epoch + 1) - self._counts(sizes, epoch)
        starts = self._counts(sizes, epoch)
        taken = [
            self._draws(source, sizes, int(starts[source]), int(counts[source]))
            for source in range(len(sizes))
        ]
        # Sample k of n of a source stands at (k + 1/2) / n of the epoch; of equals the earlier source first.
        places = np.concatenate([(np.arange(n) + 0.5) / n for n in counts.tolist() if n])
        drawn = np.concatenate(taken)
        if self.mix == "weighted" and self.shuffle:
            return drawn[permutation(len(drawn), self.seed, epoch)]
        return drawn[np.argsort(places, kind="stable")]

    def order_rows(self, rows: list[Row], number: int) -> list[Row]:
        """The rows packed from an epoch (or a stream's buffer) of that number, in the order to train on.

        Packing takes the longest that fits, so that its rows begin with long documents and end with the short
        ones; a model would forget the first by the last.
        """
        if not self.shuffle:
            return rows
        return [rows[place] for place in permutation(len(rows), self.seed, number, _ROWS).tolist()]

    def _counts(self, sizes: Sequence[int], epochs: int) -> Order:
        """How many samples of each source the first `epochs` epochs take."""
        if self.mix == "interleave":
            each = min(sizes) if self.stop == "first_exhausted" else max(sizes)
            return np.full(len(sizes), each * epochs, np.int64)
        shares = np.asarray(self.weights) / sum(self.weights)
        return np.round(shares * sum(sizes) * epochs).astype(np.int64)

    def _draws(self, source: int, sizes: Sequence[int], start: int, count: int) -> Order:
        """Draws start ... start + count of a source that is gone through again and again."""
        size, offset = sizes[source], sum(sizes[:source])
        draws = np.arange(start, start + count)
        if not self.shuffle:
            return offset + draws % size
        passes = range(start // size, -(-(start + count) // size))
        ordered = [permutation(size, self.seed, number, source) for number in passes]
        first = start - start // size * size
        return offset + np.concatenate([*ordered, np.zeros(0, np.int64)])[first : first + count]


def permutation(count: int, *entropy: int) -> Order:
    """A random order of `count` things; the same for the same entropy (not negative), on every machine."""
    # Sorted raw random numbers: NumPy promises the bits of Philox for ever, but not how it shuffles.
    draws = np.random.Philox(np.random.SeedSequence(list(entropy))).random_raw(count)
    return np.argsort(draws, kind="stable")


def next_source(weights: Sequence[float], drawn: Sequence[int]) -> int:
    """The source of the next sample of a weighted stream: the one that is furthest behind its share.

    drawn: samples taken of each source so far.
    """
    ahead = sum(drawn) + 1
    total = sum(weights)
    behind = [weight / total * ahead - count for weight, count in zip(weights, drawn, strict=True)]
    return behind.index(max(behind))
