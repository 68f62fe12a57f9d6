"""Hands out packed rows, epoch after epoch, and can say exactly where it stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

from erniekit.data.batch import PackedBatch, pack
from erniekit.data.conversation import SampleError
from erniekit.data.dataset import Dataset
from erniekit.data.document import Document
from erniekit.data.media import describe, open_image
from erniekit.data.packing import Row, plan_epoch
from erniekit.data.vision import ImageSpec, Patches, patchify
from erniekit.errors import DataError

# Rows per worker that may be ready or in work: what bounds the memory.
_ROWS_AHEAD = 2
_NEW_RUN = "start a new run from the checkpoint's weights"


def decode(document: Document, spec: ImageSpec | None) -> list[Patches]:
    """Patches of every picture of a document. Raises SampleError when one cannot be decoded."""
    found = []
    for item in document.media:
        assert spec is not None, "only an encoder with an image_spec makes documents with pictures"
        patches, grid = patchify(open_image(item.source, document.sample_id), spec)
        if grid != item.grid_thw:
            detail = f"the picture {describe(item.source)} has changed since the data was read"
            raise SampleError(document.sample_id, "bad image", detail)
        found.append(patches)
    return found


def load_row(documents: Iterable[Document], spec: ImageSpec | None) -> PackedBatch:
    """Documents with their pictures as one row. spec: Encoder.image_spec. Raises SampleError."""
    documents = list(documents)
    patches = [item for document in documents for item in decode(document, spec)]
    return pack(documents, patches)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A row as a worker leaves it: without the documents that failed; None when none is left."""

    batch: PackedBatch | None
    errors: tuple[SampleError, ...]


_Place = tuple[int, int, Row]  # epoch, number of the row, its documents
_Reached = tuple[int, int, _Loaded]


class RowLoader:
    """Rows of a dataset, without end: after the last row of an epoch comes the first of the next.

    epoch, row: where the next row stands. workers: threads that decode pictures ahead, in order; 0 = none.
    Their number never changes what comes out. A picture that fails to decode is raised, or its document left
    out and counted, as Dataset.budget says; a row that is left empty by this is passed over.
    """

    def __init__(
        self, dataset: Dataset, *, max_length: int, shuffle: bool, seed: int, workers: int = 2
    ) -> None:
        self.dataset = dataset
        self.epoch = 0
        self.row = 0
        self._max_length, self._shuffle, self._seed = max_length, shuffle, seed
        self._plans: dict[int, list[Row]] = {}
        self._workers = workers
        self._stream: Generator[_Reached] | None = None
        self.rows_per_epoch(0)  # so that a document too long for a row is an error here

    def rows_per_epoch(self, epoch: int) -> int:
        """Rows in that epoch; it may differ a little between epochs, as shuffling packs differently."""
        return len(self._plan(epoch))

    def next_row(self) -> PackedBatch:
        """The row at (epoch, row), and moves on. Raises SampleError or DataError as Dataset.budget says."""
        passed_over = 0
        while True:
            if self._stream is None:
                self._stream = self._load_ahead(self._places(self.epoch, self.row))
            epoch, row, loaded = next(self._stream)
            batch = self._account(loaded)
            last = row + 1 == self.rows_per_epoch(epoch)
            self.epoch, self.row = (epoch + 1, 0) if last else (epoch, row + 1)
            if batch is not None:
                return batch
            passed_over += 1
            if passed_over > self.rows_per_epoch(self.epoch):
                raise DataError(
                    f"no picture of the dataset can be decoded ({self.dataset.budget.by_reason()})"
                )

    def iter_rows_once(self) -> Iterator[PackedBatch]:
        """Every document once, in an order that never changes: for evaluation. Does not move (epoch, row)."""
        plan = plan_epoch(self.dataset.lengths, max_length=self._max_length, shuffle=False, seed=0, epoch=0)
        for _, _, loaded in self._load_ahead((0, number, row) for number, row in enumerate(plan)):
            batch = self._account(loaded)
            if batch is not None:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the next row stands, and what must be the same for that to mean the same row.

        JSON values only.
        """
        place = {"epoch": self.epoch, "row": self.row}
        return {**place, **self._settings(), "fingerprint": self.dataset.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state.

        Raises DataError when data or settings have changed, or the state is not one.
        """
        for name, value in self._settings().items():
            if state.get(name) != value:
                changed = f"{name} was {state.get(name)!r} and is now {value!r}, which changes every row"
                raise DataError(f"cannot continue: {changed}; set it back, or {_NEW_RUN}")
        if state.get("fingerprint") != self.dataset.fingerprint:
            raise DataError(
                "cannot continue: the training data, its template or its tokenizer have changed since the "
                f"checkpoint; put them back, or {_NEW_RUN}"
            )
        epoch, row = state.get("epoch", -1), state.get("row", -1)
        if epoch < 0 or not 0 <= row < self.rows_per_epoch(epoch):
            raise DataError(f"cannot continue: there is no row {row} in epoch {epoch} of the training data")
        self.close()
        self.epoch, self.row = epoch, row

    def close(self) -> None:
        """Stops the workers. The next row, if asked for, starts them anew."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _plan(self, epoch: int) -> list[Row]:
        if epoch not in self._plans:
            if len(self._plans) > 1:  # the one in use and the one that the workers have reached
                del self._plans[min(self._plans)]
            self._plans[epoch] = plan_epoch(
                self.dataset.lengths,
                max_length=self._max_length,
                shuffle=self._shuffle,
                seed=self._seed,
                epoch=epoch,
            )
        return self._plans[epoch]

    def _settings(self) -> dict[str, int | bool]:
        return {"max_length": self._max_length, "shuffle": self._shuffle, "seed": self._seed}

    def _places(self, epoch: int, row: int) -> Iterator[_Place]:
        for number in count(epoch):
            plan = self._plan(number)
            for index in range(row if number == epoch else 0, len(plan)):
                yield number, index, plan[index]

    def _load_ahead(self, places: Iterable[_Place]) -> Generator[_Reached]:
        """Loads rows in order, up to _ROWS_AHEAD per worker before they are asked for."""
        if self._workers == 0:
            for epoch, number, row in places:
                yield epoch, number, self._load(row)
            return
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="erniekit-data")
        pending: deque[tuple[int, int, Future[_Loaded]]] = deque()
        try:
            for epoch, number, row in places:
                pending.append((epoch, number, pool.submit(self._load, row)))
                if len(pending) > _ROWS_AHEAD * self._workers:
                    yield _done(pending.popleft())
            while pending:
                yield _done(pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, row: Row) -> _Loaded:
        documents: list[Document] = []
        patches: list[Patches] = []
        errors: list[SampleError] = []
        for index in row:
            document = self.dataset.documents[index]
            try:
                patches += decode(document, self.dataset.image_spec)
                documents.append(document)
            except SampleError as error:
                errors.append(error)
        return _Loaded(pack(documents, patches) if documents else None, tuple(errors))

    def _account(self, loaded: _Loaded) -> PackedBatch | None:
        for error in loaded.errors:
            self.dataset.budget.spend(error)
        return loaded.batch


def _done(pending: tuple[int, int, Future[_Loaded]]) -> _Reached:
    epoch, number, future = pending
    return epoch, number, future.result()
