"""Writing the weights of a model in any layout, streamed, with checksums."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from erniekit.checkpoint.hub import spec_bytes, write_shards
from erniekit.checkpoint.manifest import write_checksums
from erniekit.checkpoint.tensor_layouts import StoredTensor
from erniekit.config.choices import CheckpointLayout
from erniekit.display.progress import OnProgress, no_progress
from erniekit.runtime import usable_cores

# FastDeploy and ERNIEKit read files that say so; the loaders of torch's layouts want "pt".
FILE_FORMATS: dict[CheckpointLayout, str] = {"hub": "pt", "transformers": "pt", "paddle": "np"}
# Tensors that are read ahead: by how many threads, and how much.
_READERS, _AHEAD_BYTES = 4, 256 << 20


@dataclass(frozen=True)
class WeightsWriter:
    """Writes the tensors `stored` as the weight files of a layout. `progress` gets bytes."""

    layout: CheckpointLayout
    stored: Sequence[StoredTensor]
    max_shard_bytes: int
    progress: OnProgress = no_progress

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec_bytes(tensor.spec) for tensor in self.stored)

    def write(self, directory: Path, get: Callable[[str], np.ndarray], *, ahead: bool = False) -> int:
        """Write shards, index and checksums; returns the number of shards. get: the values of a tensor of the Hub.

        ahead: threads call `get` for the next tensors while one is written.
        """
        arrays = self._arrays_ahead(get) if ahead else (tensor.read(get) for tensor in self.stored)
        with closing(arrays):
            shards = write_shards(
                directory,
                [tensor.spec for tensor in self.stored],
                self._counted(arrays),
                self.max_shard_bytes,
                {"format": FILE_FORMATS[self.layout]},
            )
        write_checksums(directory, shards)
        return len(shards)

    def _arrays_ahead(self, get: Callable[[str], np.ndarray]) -> Generator[np.ndarray]:
        """The values of `stored`, the next ones being read while the caller works on one."""
        waiting = deque(self.stored)
        coming: deque[tuple[Future[np.ndarray], int]] = deque()
        held = 0
        readers = ThreadPoolExecutor(min(usable_cores(), _READERS), thread_name_prefix="read")
        try:
            while waiting or coming:
                while waiting and (not coming or held + spec_bytes(waiting[0].spec) <= _AHEAD_BYTES):
                    tensor = waiting.popleft()
                    held += spec_bytes(tensor.spec)
                    coming.append((readers.submit(tensor.read, get), spec_bytes(tensor.spec)))
                future, size = coming.popleft()
                yield future.result()
                # Its memory, before further tensors are read.
                del future
                held -= size
        finally:
            readers.shutdown(cancel_futures=True)

    def _counted(self, arrays: Iterator[np.ndarray]) -> Callable[[str], np.ndarray]:
        total, done = self.nbytes, 0

        def read(_: str) -> np.ndarray:
            nonlocal done
            array = next(arrays)
            done += array.nbytes
            self.progress("weights", done, total)
            return array

        return read
