"""The order of the samples of an epoch, from several sources.

Pure functions of sizes, weights, seed and epoch, so that a run can resume anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from erniekit.config.choices import Mix, Stop
from erniekit.data.load.packing import Row

Order = npt.NDArray[np.int64]
# Seeds the order of rows, where a source's number seeds the order of its samples.
_ROWS = 1 << 32


@dataclass(frozen=True, slots=True)
class Mixture:
    """How sources are mixed.

    mix: "concat": every sample once; "interleave": one sample of each source in turn, until the first source is
    exhausted or, depending on `stop`, all are (shorter ones repeat); "weighted": samples are drawn in proportion to
    `weights` (positive, one per source), as many as all sources have together. shuffle: a new order in each epoch, from
    `seed`.
    """

    mix: Mix
    stop: Stop
    weights: tuple[float, ...]
    shuffle: bool
    seed: int

    def order(self, sizes: Sequence[int], epoch: int) -> Order:
        """The samples of an epoch, as indices into all sources one after the other.

        sizes: number of samples of each source. If an epoch does not use all samples of a source, the next epoch
        continues with the rest, so that every sample is used eventually.
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
        # Sample k of n of a source is at (k + 1/2) / n of the epoch; ties go to the earlier source.
        places = np.concatenate([(np.arange(n) + 0.5) / n for n in counts.tolist() if n])
        drawn = np.concatenate(taken)
        if self.mix == "weighted" and self.shuffle:
            return drawn[permutation(len(drawn), self.seed, epoch)]
        return drawn[np.argsort(places, kind="stable")]

    def order_rows(self, rows: list[Row], number: int) -> list[Row]:
        """The rows packed from epoch `number` (or a stream's buffer of that number), in the order of training.

        Packing takes the longest document that fits, so its first rows have long documents and its last rows short
        ones. Training in that order would forget the long documents.
        """
        if not self.shuffle:
            return rows
        return [rows[place] for place in permutation(len(rows), self.seed, number, _ROWS).tolist()]

    def _counts(self, sizes: Sequence[int], epochs: int) -> Order:
        """Number of samples of each source in the first `epochs` epochs."""
        if self.mix == "interleave":
            each = min(sizes) if self.stop == "first_exhausted" else max(sizes)
            return np.full(len(sizes), each * epochs, np.int64)
        shares = np.asarray(self.weights) / sum(self.weights)
        return np.round(shares * sum(sizes) * epochs).astype(np.int64)

    def _draws(self, source: int, sizes: Sequence[int], start: int, count: int) -> Order:
        """Draws start ... start + count - 1 from a source that repeats without end."""
        size, offset = sizes[source], sum(sizes[:source])
        draws = np.arange(start, start + count)
        if not self.shuffle:
            return offset + draws % size
        passes = range(start // size, -(-(start + count) // size))
        ordered = [permutation(size, self.seed, number, source) for number in passes]
        first = start - start // size * size
        return offset + np.concatenate([*ordered, np.zeros(0, np.int64)])[first : first + count]


def permutation(count: int, *entropy: int) -> Order:
    """A random permutation of range(count), the same for the same entropy (not negative) on every machine."""
    # By sorting raw random numbers: NumPy guarantees the bits of Philox, but not the algorithm of its shuffle.
    draws = np.random.Philox(np.random.SeedSequence(list(entropy))).random_raw(count)
    return np.argsort(draws, kind="stable")


def next_source(weights: Sequence[float], drawn: Sequence[int]) -> int:
    """The source of the next sample of a weighted stream: the one furthest behind its share.

    drawn: number of samples taken from each source so far.
    """
    ahead = sum(drawn) + 1
    total = sum(weights)
    behind = [weight / total * ahead - count for weight, count in zip(weights, drawn, strict=True)]
    return behind.index(max(behind))
