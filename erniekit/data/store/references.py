"""Log-probabilities of preference pairs under a reference model, stored beside the encoded pairs.

The directory of a store has one file for each reference model: float32 [D, 2] for the chosen and the rejected answer of
each pair, NaN if not computed yet.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from erniekit.data.store.store import DocumentStore
from erniekit.errors import DataError

_VALUE = np.dtype(np.float32)


class ReferenceFile:
    """The log-probabilities of the pairs of a store. They are written at once, so an interrupted computation continues.

    key: identifies the reference model. values: float32 [D, 2]. Raises DataError if the file cannot be written.
    """

    def __init__(self, store: DocumentStore, key: str) -> None:
        self.path: Path = store.directory / f"reference-{key}.bin"
        self.values: npt.NDArray[np.float32] = np.full((len(store), 2), np.nan, _VALUE)
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            found = np.frombuffer(os.pread(self._descriptor, self.values.nbytes, 0), _VALUE)
            if len(found) == self.values.size:
                self.values[:] = found.reshape(-1, 2)
            else:  # a new file, or one that was not written to its full size
                os.pwrite(self._descriptor, self.values.tobytes(), 0)
                # Where a machine loses power, parts that were not written to the disk read as zeros, which are values.
                os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from error

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Positions of the pairs without values."""
        return np.flatnonzero(np.isnan(self.values).any(1))

    def write(self, positions: Sequence[int], values: npt.NDArray[np.float32]) -> None:
        """Write the values [n, 2] of the pairs at n positions."""
        try:
            for position, pair in zip(positions, values.astype(_VALUE), strict=True):
                self.values[position] = pair
                os.pwrite(self._descriptor, pair.tobytes(), position * pair.nbytes)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the file; `values` stays valid."""
        os.close(self._descriptor)

    def _failed(self, error: OSError) -> DataError:
        reason = error.strerror or str(error)
        return DataError(f"{self.path}: the reference log-probabilities cannot be written: {reason}")
