"""Worker processes that encode samples and decode images and videos.

They are processes, not threads, since both tasks hold the GIL. They are spawned, since a fork of a process that has
Paddle's threads can hang. Results do not depend on their number.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.samples import Sample, SampleReader
from erniekit.data.files.reader import BadLine, Record
from erniekit.data.media.item import MediaSpec, decode
from erniekit.data.media.patches import Patches
from erniekit.display.text import counted, listed
from erniekit.errors import DataError

# Tasks per worker that may be finished or running at a time. Limits memory.
_AHEAD = 2
# Seconds to wait for a worker before it is logged, and at most when the pool is closed. The wait is an error after
# twice _PATIENCE if the worker was stopped by a signal, otherwise after _MOST times _PATIENCE.
_PATIENCE, _CLOSE_SECONDS, _MOST = 60.0, 10.0, 30
# A pool notices within this time that one of its processes died, or never.
_DEATH_SECONDS = 1.0
# How often new processes replace processes that died.
_RESTARTS = 2

_NAMED = 3

Batch = tuple[Sequence[Record | BadLine], Path, str]  # records, directory of their file, format
Decoded = list[list[Patches] | SampleError]
Item = TypeVar("Item")
Input = TypeVar("Input")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Task(Generic[Input, Result]):
    """An input, and its result or the future of it in a pool."""

    item: Input
    result: Result | Future[Result]
    pool: ProcessPoolExecutor | None


class Workers:
    """A pool of `count` processes, which start on first use; with 0, the calling process does the work.

    If a process dies, such as one that the system kills for its memory, the pool starts again and repeats what is
    missing. spec: how images and videos are read, None for a text model; reader: encodes records, only needed for
    `encode`. log: called when a process has died, or takes longer than `patience` seconds.
    """

    def __init__(
        self,
        count: int,
        spec: MediaSpec | None,
        reader: SampleReader | None = None,
        *,
        log: Callable[[str], None] | None = None,
        patience: float = _PATIENCE,
    ) -> None:
        self.count = count
        self._spec, self._reader = spec, reader
        self._log, self._patience = log, patience
        self._pool: ProcessPoolExecutor | None = None

    def encode(self, batches: Iterable[Batch]) -> Generator[list[Sample]]:
        """The samples of each batch of records, in order."""
        reader = self._reader
        assert reader is not None, "these workers were made to decode only"
        return self._run(
            batches, lambda batch: _read(reader, batch), _encode_batch, lambda batch: True, _records_of
        )

    def decode(
        self, rows: Iterable[Item], documents: Callable[[Item], Sequence[Document]]
    ) -> Generator[tuple[Item, Decoded]]:
        """Each item with the patches of its documents, in order; the error for documents that cannot be decoded."""
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
            _samples_of,
        )
        try:
            for decoded in results:
                yield kept.popleft(), decoded
        finally:
            results.close()

    def close(self) -> None:
        """Stop the processes, and kill those that do not end. Later calls start new ones."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes, thread, results = _processes(pool), _manager(pool), _results(pool)
        pool.shutdown(wait=False, cancel_futures=True)
        if thread is None:
            return
        thread.join(min(self._patience, _CLOSE_SECONDS))
        if not thread.is_alive():
            return
        left = [process for process in processes if process.is_alive()]
        names = ", ".join(str(process.pid) for process in left)
        if left:
            self._say(f"worker processes of the data do not end and are killed: {names}")
        _end(processes, results)
        thread.join()

    def _run(
        self,
        inputs: Iterable[Input],
        here: Callable[[Input], Result],
        there: Callable[[Input], Result],
        worth: Callable[[Input], bool],
        name: Callable[[Input], str],
    ) -> Generator[Result]:
        """Results in the order of inputs. `there` runs in a worker process; `here` does the same in this process.

        worth: whether to send an input to a worker; name: describes an input in messages.
        """
        pending: deque[_Task[Input, Result]] = deque()
        try:
            for item in inputs:
                if self.count > 0 and worth(item):
                    pending.append(self._submitted(item, there))
                else:
                    pending.append(_Task(item, here(item), None))
                if len(pending) > _AHEAD * self.count:
                    yield self._first(pending, there, name)
            while pending:
                yield self._first(pending, there, name)
        finally:
            for task in pending:
                if isinstance(task.result, Future):
                    task.result.cancel()

    def _submitted(self, item: Input, there: Callable[[Input], Result]) -> _Task[Input, Result]:
        pool = self._started()
        try:
            return _Task(item, pool.submit(there, item), pool)
        except BrokenProcessPool as error:
            # A process has died since: `_first` meets it, with what it had to do.
            broken: Future[Result] = Future()
            broken.set_exception(error)
            return _Task(item, broken, pool)

    def _first(
        self,
        pending: deque[_Task[Input, Result]],
        there: Callable[[Input], Result],
        name: Callable[[Input], str],
    ) -> Result:
        """Take the first task, and return its result. Raises DataError where processes die again and again."""
        restarts = 0
        while True:
            try:
                found = self._finished(pending[0], name)
                pending.popleft()
                return found
            except BrokenProcessPool as error:
                first = name(pending[0].item)
                if restarts == _RESTARTS:
                    raise DataError(
                        f"a worker process of the data died {restarts + 1} times (killed, perhaps, because memory ran "
                        f"out) at {first}. Fewer data.workers (now {self.count}) take less memory; 0 does the work in "
                        "the main process, where a crash shows its cause"
                    ) from error
                restarts += 1
                self._say(
                    "a worker process of the data died (killed, perhaps, because memory ran out); new processes do its "
                    f"work again, from {first} on"
                )
                self._restart(pending, there)

    def _restart(self, pending: Iterable[_Task[Input, Result]], there: Callable[[Input], Result]) -> None:
        """Send the tasks of a broken pool to a new one."""
        for task in pending:
            if not isinstance(task.result, Future) or _is_done_well(task.result):
                continue
            if task.pool is self._pool:
                self._pool = None
            again = self._submitted(task.item, there)
            task.result, task.pool = again.result, again.pool

    def _finished(self, task: _Task[Input, Result], name: Callable[[Input], str]) -> Result:
        """Wait for a result. Raises DataError if a worker is stopped, or takes too long."""
        item, result, pool = task.item, task.result, task.pool
        if not isinstance(result, Future):
            return result
        assert pool is not None
        # Ctrl-Z stops all processes together, which is no error: so time is counted in waits instead of measured, and
        # a worker must be seen stopped twice.
        seconds, said, before = 0.0, self._patience, set[int]()
        while not _wait(result, pool, self._patience):
            seconds += self._patience
            stopped = _stopped(_processes(pool))
            still, before = sorted(stopped & before), stopped
            if still or seconds > self._patience * _MOST:
                reason = (
                    f"process {still[0]} is stopped" if still else "it may wait for a disk or the network"
                )
                raise DataError(
                    f"a worker process of the data gives no result for {name(item)} in {seconds:.0f} s: {reason}. "
                    "Resume the run once it is fixed; data.workers: 0 does the work in the main process"
                )
            if seconds >= said:
                self._say(f"waiting for a worker process of the data for {seconds:.0f} s: {name(item)}")
                said *= 2
        return result.result()

    def _say(self, text: str) -> None:
        if self._log is not None:
            self._log(text)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            try:
                self._pool = ProcessPoolExecutor(
                    self.count,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_start,
                    initargs=(self._spec, self._reader),
                )
            except OSError as error:
                raise DataError(
                    f"the worker processes of the data cannot be started: {error.strerror}. Their locks lie in "
                    "/dev/shm, which must have room; data.workers: 0 needs none"
                ) from error
        return self._pool


def decode_all(documents: Sequence[Document], spec: MediaSpec | None) -> Decoded:
    """The patches of the images and videos of each document, or its error."""
    decoded: Decoded = []
    for document in documents:
        try:
            decoded.append(decode(document.media, document.sample_id, spec))
        except SampleError as error:
            decoded.append(error)
    return decoded


def _processes(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    return list((pool._processes or {}).values())


def _manager(pool: ProcessPoolExecutor) -> threading.Thread | None:
    """The pool's thread, which ends after all its processes; None before the first task."""
    thread: threading.Thread | None = vars(pool)["_executor_manager_thread"]
    return thread


def _wait(result: Future[Any], pool: ProcessPoolExecutor, seconds: float) -> bool:
    """Wait for a result for so long; whether it is there. Ends the pool where a process has died and it hangs."""
    before = set[int | None]()
    while seconds > 0 and not wait([result], min(seconds, _DEATH_SECONDS)).done:
        seconds -= _DEATH_SECONDS
        dead = {process.pid for process in _processes(pool) if process.exitcode is not None}
        if dead & before:
            _end(_processes(pool), _results(pool))
        before = dead
    return result.done()


def _end(processes: Iterable[BaseProcess], results: Any) -> None:
    """Kill the processes of a pool, so that its thread ends.

    The thread waits forever for the rest of a result of a killed process as long as any process may send, including
    this one; so this process closes its end.
    """
    for process in processes:
        process.kill()
    results._writer.close()


def _results(pool: ProcessPoolExecutor) -> Any:
    """The queue from the processes to the thread."""
    return vars(pool)["_result_queue"]


def _is_done_well(result: Future[Any]) -> bool:
    return result.done() and not result.cancelled() and result.exception() is None


def _stopped(processes: Iterable[BaseProcess]) -> set[int]:
    """Ids of processes that a signal has stopped (SIGSTOP). Empty without /proc."""
    found = set()
    for process in processes:
        try:
            status = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        # The state follows the name in parentheses, which may contain any character.
        if process.pid is not None and status.rpartition(")")[2].split()[:1] == ["T"]:
            found.add(process.pid)
    return found


def _samples_of(documents: Sequence[Document]) -> str:
    return listed([document.sample_id for document in documents if document.media], _NAMED)


def _records_of(batch: Batch) -> str:
    return f"{counted(len(batch[0]), 'record')} of a file in {batch[1]}"


def _read(reader: SampleReader, batch: Batch) -> list[Sample]:
    records, base_dir, data_format = batch
    return [reader.read(record, base_dir, data_format) for record in records]


class _Process:
    """The settings of a worker process, set once before its first task."""

    spec: MediaSpec | None = None
    reader: SampleReader | None = None


def _start(spec: MediaSpec | None, reader: SampleReader | None) -> None:
    # Ctrl-C is sent to every process of the terminal. Only the main process handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _Process.spec, _Process.reader = spec, reader


def _end_with_parent() -> None:
    """End this worker when the main process ends. A killed main process cannot stop its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _decode_row(documents: Sequence[Document]) -> Decoded:
    return decode_all(documents, _Process.spec)


def _encode_batch(batch: Batch) -> list[Sample]:
    assert _Process.reader is not None
    return _read(_Process.reader, batch)
