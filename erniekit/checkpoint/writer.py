"""Writes the files of one process, at once or in a background thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from erniekit.checkpoint.hub import spec_bytes, write_safetensors
from erniekit.checkpoint.manifest import FileRecord
from erniekit.checkpoint.parts import PartFile
from erniekit.errors import CheckpointError
from erniekit.models.specs import TensorSpec


@dataclass(frozen=True)
class PlannedFile:
    """A safetensors file to be written, and its tensors in order."""

    name: str
    specs: Sequence[TensorSpec]

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(spec_bytes(spec) for spec in self.specs)


class FileWriter:
    """Writes files into a directory. `records` and `error` are valid after `run` or `join`.

    arrays: the values of all tensors, file by file. They are read to the end also when the disk is full, since other
    processes may take part in making them. rank: of this process, with a `PartFile` from `start` to `close`; None where
    no other process waits for it.
    """

    def __init__(
        self,
        directory: Path,
        files: Sequence[PlannedFile],
        arrays: Iterator[np.ndarray],
        rank: int | None = None,
    ) -> None:
        self.files = files
        self._directory, self._arrays, self._rank = directory, arrays, rank
        self._part: PartFile | None = None
        self._thread: threading.Thread | None = None
        self._bug: BaseException | None = None
        self.records: dict[str, FileRecord] = {}
        self.error: str | None = None

    def run(self) -> None:
        """Write the files."""
        try:
            self._make_directory()
            for file in self.files:
                path = self._directory / file.name
                self.records[file.name] = write_safetensors(path, file.specs, lambda _: next(self._arrays))
        except (OSError, CheckpointError) as error:
            self._fail(error)
        finally:
            for _ in self._arrays:
                pass

    def start(self) -> None:
        """Write the files in a thread, which ends with the process."""
        if self._rank is not None:
            try:
                self._make_directory()
                self._part = PartFile(self._directory, self._rank)
            except OSError as error:
                self._fail(error)
        self._thread = threading.Thread(target=self._run_in_thread, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the thread still writes."""
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Wait for the thread, if there is one."""
        if self._thread is not None:
            self._thread.join()
        if self._bug is not None:
            raise self._bug

    def wait(self, seconds: float) -> None:
        """Wait for the thread, for at most this time."""
        if self._thread is not None:
            self._thread.join(seconds)

    def close(self) -> None:
        """End the lock of the part file: this process does nothing more for the checkpoint."""
        if self._part is not None:
            self._part.close()

    def _run_in_thread(self) -> None:
        try:
            if self.error is None:
                self.run()
        except BaseException as error:
            self._bug = error
        if self._part is not None:
            self._part.write(self.records, self.error if self._bug is None else str(self._bug))
            # The main process is not done.
            if self._rank:
                self._part.close()

    def _make_directory(self) -> None:
        # The process that makes it first may be on another machine.
        if self.files or self._rank is not None:
            self._directory.mkdir(parents=True, exist_ok=True)

    def _fail(self, error: OSError | CheckpointError) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        self.error = f"{self._directory}: the checkpoint cannot be written: {reason}"
