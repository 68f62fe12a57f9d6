"""Log-probabilities of pairs under a reference model, kept next to the encoded pairs.

One file for a store and a model, in the store's directory: float32 [D, 2] of chosen and rejected answers, NaN where it
is yet to be computed. The store's own directory is the key of the data.
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
    """The log-probabilities of a store, by position; what is written stays, so that an interrupted computation goes on.

    key: names the model. values [D, 2] float32. Raises DataError when the disk does not take it.
    """

    def __init__(self, store: DocumentStore, key: str) -> None:
        self.path: Path = store.directory / f"reference-{key}.bin"
        self.values: npt.NDArray[np.float32] = np.full((len(store), 2), np.nan, _VALUE)
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            found = np.frombuffer(os.pread(self._descriptor, self.values.nbytes, 0), _VALUE)
            if len(found) == self.values.size:
                self.values[:] = found.reshape(-1, 2)
            else:  # new, or cut off before it had its size
                os.pwrite(self._descriptor, self.values.tobytes(), 0)
        except OSError as error:
            raise self._failed(error) from error

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Positions that have no values yet."""
        return np.flatnonzero(np.isnan(self.values).any(1))

    def write(self, positions: Sequence[int], values: npt.NDArray[np.float32]) -> None:
        """values [len(positions), 2] of those documents."""
        try:
            for position, pair in zip(positions, values.astype(_VALUE), strict=True):
                self.values[position] = pair
                os.pwrite(self._descriptor, pair.tobytes(), position * pair.nbytes)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the file; values stay."""
        os.close(self._descriptor)

    def _failed(self, error: OSError) -> DataError:
        reason = error.strerror or str(error)
        return DataError(f"{self.path}: the reference's log-probabilities cannot be kept: {reason}")
