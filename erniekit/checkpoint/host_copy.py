"""A copy of tensors in host memory, which is kept for the next copy."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_THREADS = 4


class HostCopy:
    """Copies arrays into memory that stays allocated: the system takes longer to provide memory than to copy to it.

    A copy is valid until the next one begins.
    """

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def copy(self, arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
        """The arrays with the values that they have now."""
        copies = []
        with ThreadPoolExecutor(_THREADS) as pool:
            running = []
            for number, array in enumerate(arrays):
                target = self._buffer(number, array)
                running.append(pool.submit(np.copyto, target, array))
                copies.append(target)
            for future in running:
                future.result()
        return copies

    def _buffer(self, number: int, array: np.ndarray) -> np.ndarray:
        if number == len(self._buffers):
            self._buffers.append(np.empty(array.nbytes, np.uint8))
        elif self._buffers[number].nbytes != array.nbytes:
            self._buffers[number] = np.empty(array.nbytes, np.uint8)
        return self._buffers[number].view(array.dtype).reshape(array.shape)
