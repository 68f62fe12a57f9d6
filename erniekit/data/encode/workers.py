"""Worker processes that encode samples and decode images and videos.

Processes, since both hold Python's lock. They are spawned, never forked: a fork of a process that runs Paddle's
threads can hang. What comes out does not depend on their number.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.samples import Sample, SampleReader
from erniekit.data.files.reader import BadLine, Record
from erniekit.data.media.item import MediaSpec, decode
from erniekit.data.media.patches import Patches
from erniekit.errors import DataError

# Tasks per worker that may be ready or in work: what bounds the memory.
_AHEAD = 2

Batch = tuple[Sequence[Record | BadLine], Path, str]  # records, directory of their file, format
Decoded = list[list[Patches] | SampleError]
Item = TypeVar("Item")
Input = TypeVar("Input")
Result = TypeVar("Result")


class Workers:
    """A pool of `count` processes that starts when it is first needed; 0: the work is done by the caller.

    reader: what encodes records, where records are to be encoded; spec: of images and videos, None for a
    text model.
    """

    def __init__(self, count: int, spec: MediaSpec | None, reader: SampleReader | None = None) -> None:
        self.count = count
        self._spec, self._reader = spec, reader
        self._pool: ProcessPoolExecutor | None = None

    def encode(self, batches: Iterable[Batch]) -> Generator[list[Sample]]:
        """The samples of each batch of records, in order."""
        reader = self._reader
        assert reader is not None, "these workers were made to decode only"
        return self._run(batches, lambda batch: _read(reader, batch), _encode_batch, lambda batch: True)

    def decode(
        self, rows: Iterable[Item], documents: Callable[[Item], Sequence[Document]]
    ) -> Generator[tuple[Item, Decoded]]:
        """Each item with the patches of its documents, or the error of each that cannot be decoded, in order."""
        kept: deque[Item] = deque()

        def inputs() -> Generator[Sequence[Document]]:
            for item in rows:
                kept.append(item)
                yield documents(item)

        spec = self._spec
        results = self._run(
            inputs(),
            lambda row: decode_all(row, spec),
            _decode_row,
            lambda row: any(document.media for document in row),
        )
        try:
            for decoded in results:
                yield kept.popleft(), decoded
        finally:
            results.close()

    def close(self) -> None:
        """Stop the processes. They start anew when they are needed again."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _run(
        self,
        inputs: Iterable[Input],
        here: Callable[[Input], Result],
        there: Callable[[Input], Result],
        worth: Callable[[Input], bool],
    ) -> Generator[Result]:
        """Results in the order of inputs; `there` runs in a process, `here` does the same in this one.

        worth: whether an input is worth sending.
        """
        pending: deque[tuple[Input, Result | Future[Result]]] = deque()
        try:
            for item in inputs:
                sent = self.count > 0 and worth(item)
                pending.append((item, self._started().submit(there, item) if sent else here(item)))
                if len(pending) > _AHEAD * self.count:
                    yield _finished(*pending.popleft())
            while pending:
                yield _finished(*pending.popleft())
        except BrokenProcessPool as error:
            self._pool = None
            raise DataError(
                "a worker process of the data died (killed, perhaps, because memory ran out), and the work of the "
                f"others with it. Fewer data.workers (now {self.count}) take less memory; 0 does the work in the "
                "main process, where a crash shows its cause"
            ) from error
        finally:
            for _, result in pending:
                if isinstance(result, Future):
                    result.cancel()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.count,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(self._spec, self._reader),
            )
        return self._pool


def decode_all(documents: Sequence[Document], spec: MediaSpec | None) -> Decoded:
    """The patches of each document's images and videos, or its error."""
    decoded: Decoded = []
    for document in documents:
        try:
            decoded.append(decode(document.media, document.sample_id, spec))
        except SampleError as error:
            decoded.append(error)
    return decoded


def _finished(item: Input, result: Result | Future[Result]) -> Result:
    return result.result() if isinstance(result, Future) else result


def _read(reader: SampleReader, batch: Batch) -> list[Sample]:
    records, base_dir, data_format = batch
    return [reader.read(record, base_dir, data_format) for record in records]


class _Process:
    """What a worker process was started with; set once, before its first task."""

    spec: MediaSpec | None = None
    reader: SampleReader | None = None


def _start(spec: MediaSpec | None, reader: SampleReader | None) -> None:
    # Ctrl-C reaches every process of the terminal; the main one decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _Process.spec, _Process.reader = spec, reader


def _end_with_parent() -> None:
    """A main process that is killed cannot stop its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _decode_row(documents: Sequence[Document]) -> Decoded:
    return decode_all(documents, _Process.spec)


def _encode_batch(batch: Batch) -> list[Sample]:
    assert _Process.reader is not None
    return _read(_Process.reader, batch)
