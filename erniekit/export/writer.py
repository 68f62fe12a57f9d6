"""Writing a model directory in any layout: streamed, with checksums, and in place only when it is complete."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from erniekit.checkpoint.hub import spec_bytes, write_shards
from erniekit.checkpoint.manifest import write_checksums
from erniekit.checkpoint.tensor_layouts import StoredTensor
from erniekit.config.choices import CheckpointLayout
from erniekit.display.progress import OnProgress, no_progress
from erniekit.errors import CheckpointError
from erniekit.interrupt import exit_on_sigterm
from erniekit.runtime import usable_cores

# FastDeploy and ERNIEKit read files that say so; the loaders of torch's layouts want "pt".
FILE_FORMATS: dict[CheckpointLayout, str] = {"hub": "pt", "transformers": "pt", "paddle": "np"}
# Tokenizer, configurations and the index of shards.
_SIDE_BYTES = 64 << 20
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


def check_output(output: Path) -> None:
    """Raise CheckpointError unless an output directory is new or empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            f"{output}: not an empty directory; choose another --output, or remove it first"
        )


@contextmanager
def replacing(output: Path, nbytes: int) -> Iterator[Path]:
    """A directory beside `output` that takes its place at the end of the block, and is removed if the block fails.

    nbytes: of the weights; checked against the free space of the disk. Raises CheckpointError.
    """
    check_output(output)
    aside: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(output.parent).free, nbytes + _SIDE_BYTES
        if free < needed:
            raise CheckpointError(
                f"{output}: the disk has {free / 1e9:,.1f} GB free and {needed / 1e9:,.1f} GB are needed; "
                "free some, or choose a directory on another disk"
            )
        with exit_on_sigterm():
            aside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
            aside.chmod(0o755)
            yield aside
            aside.replace(output)
    except OSError as error:
        raise CheckpointError(f"{output}: it cannot be written: {error.strerror or error}") from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
