"""The loader of packed rows: decodes their images, and saves and restores its exact position."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.workers import Decoded, Workers
from erniekit.data.load.batch import PackedBatch, filler, pack
from erniekit.data.load.packing import spread
from erniekit.data.load.rows import NEW_RUN, PlannedRow, PlannedRows, State
from erniekit.data.media.item import MediaSpec, decode
from erniekit.data.media.patches import Patches
from erniekit.data.store.digests import differ
from erniekit.display.text import clipped, counted
from erniekit.errors import DataError, ErnieKitError

# Give up after this many consecutive rows without a sample that can be decoded.
_EMPTY_ROWS = 1000
_NAMED = 5
_LONGEST_NAME = 300
EPOCH_TOLERANCE = 1e-9
"""Tolerance of the comparison with a number of epochs: sums of floats may be slightly too small."""
# Descriptions of the settings of a source that have no key in the configuration.
_SETTINGS = {"processes": "the number of processes that share the stream (--devices / parallel.context)"}


def load_row(documents: Iterable[Document], spec: MediaSpec | None) -> PackedBatch:
    """Decode the images of documents and pack them into one row. spec: `Encoder.media_spec`. Raises SampleError."""
    documents = list(documents)
    patches = [item for document in documents for item in decode(document.media, document.sample_id, spec)]
    return pack(documents, patches)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row before its images are decoded. after: the state of the next row."""

    documents: Sequence[Document]
    after: State


class RowLoader:
    """An endless iterator over the rows of a source, with a state that can be saved.

    state: the position of the next row. workers: decode images and videos ahead of time, in order; results do not
    depend on their number. If an image cannot be decoded, `budget` raises the error, or the document is left out and
    counted; a row without documents is skipped.

    Each of `ranks` processes has a loader, which only reads the rows of its `rank`: the rows_per_step rows of a step
    are distributed so that all ranks have about as many image patches. After `epochs` (which may be fractional), the
    last step has the remaining rows. All processes get the same number of rows in a step; one without rows left gets
    `filler` rows. If the source itself shares samples among ranks (`StreamedRows`), all its rows belong to this loader,
    and each loader has a different state.
    """

    def __init__(
        self,
        source: PlannedRows,
        budget: ErrorBudget,
        workers: Workers,
        *,
        rows_per_step: int = 1,
        epochs: float | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.source = source
        self.budget = budget
        self.state: State = source.start()
        self._workers = workers
        self._rows_per_step, self._epochs, self._rank, self._ranks = rows_per_step, epochs, rank, ranks
        self._is_shared = source.ranks > 1
        self._stream: Generator[tuple[_Row, Decoded]] | None = None
        self._ahead: tuple[PackedBatch, State] | ErnieKitError | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the next row, counted from 0."""
        return self.source.epoch(self.state)

    @property
    def epochs_done(self) -> float:
        """The epochs before the next row, as a fraction."""
        return self.source.epochs_done(self.state)

    @property
    def is_over(self) -> bool:
        """Whether the rows of all `epochs` are drawn; never without `epochs`."""
        return self._is_over(self.state)

    def next_row(self) -> PackedBatch:
        """The row at `state`, which advances. Raises the SampleError or DataError of `budget`."""
        self.prefetch()
        found, self._ahead = self._ahead, None
        assert found is not None
        if isinstance(found, ErnieKitError):
            raise found
        batch, self.state = found
        return batch

    def prefetch(self) -> None:
        """Read the row that `next_row` returns. Errors are raised by `next_row`, and `state` does not advance."""
        if self._ahead is None:
            try:
                self._ahead = self._read()
            except ErnieKitError as error:
                self._ahead = error

    def _read(self) -> tuple[PackedBatch, State]:
        """The next row, and the state after it."""
        for _ in range(_EMPTY_ROWS):
            if self._stream is None:
                rows = self._own(self.source.rows(self.state))
                self._stream = self._workers.decode(rows, lambda row: row.documents)
            row, decoded = next(self._stream)
            batch = self._account(row.documents, decoded)
            if batch is not None:
                return batch, row.after
            if self._ranks > 1 and not self._is_shared:
                return filler(), row.after
        raise DataError(
            f"none of the last {_EMPTY_ROWS} rows has a sample that can be used ({self.budget.by_reason()})"
        )

    def once(self, rows: Iterable[Sequence[Document]]) -> Iterator[PackedBatch]:
        """Decode the given rows of this rank, such as `StoredRows.once`. `state` does not advance."""
        for documents, decoded in self._workers.decode(rows, lambda row: row):
            batch = self._account(documents, decoded)
            if batch is not None:
                yield batch
            elif self._ranks > 1:
                yield filler()

    def state_dict(self) -> dict[str, Any]:
        """The position of the next row, and the settings for which it is valid. JSON values only.

        For a source that is shared among processes, this is the state of one process: see `join_states`.
        """
        return {"place": self.state, "settings": self.source.settings}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a state of this process or of all processes (`join_states`). Raises as `check_state`."""
        self.check_state(saved)
        self.close()
        self.state = self._place(saved)

    def check_state(self, saved: dict[str, Any]) -> None:
        """Raise DataError if data or settings have changed, or the state is invalid."""
        before = _object(saved, "settings")
        for name, value in self.source.settings.items():
            if name in ("fingerprint", "files") or before.get(name) == value:
                continue
            what = _SETTINGS.get(name, name)
            was = clipped(repr(before.get(name)))
            changed = f"{what} was {was} and is now {value!r}, which changes every row"
            raise DataError(f"cannot continue: {changed}; set it back, or {NEW_RUN}")
        if before.get("fingerprint") != self.source.settings["fingerprint"]:
            raise DataError(
                f"cannot continue: {self.describe_change(saved)} since the checkpoint; put them back, or {NEW_RUN}"
            )
        self.source.check(self._place(saved))

    def describe_change(self, saved: dict[str, Any]) -> str:
        """Describe how the data differs from the data of a state: the names of changed files, or another cause."""
        before = _object(_object(saved, "settings"), "files")
        now = self.source.settings["files"]
        if not before or not now:
            return "the training data, its template or its tokenizer have changed"
        lines = [f"{name} has changed" for name in now if name in before and differ(before[name], now[name])]
        lines += [
            f"{clipped(name, _LONGEST_NAME)} is not in data.train any more"
            for name in before
            if name not in now
        ]
        lines += [f"{name} is new in data.train" for name in now if name not in before]
        if not lines:
            return self._describe_contents(are_same=before == now)
        more = [f"{len(lines) - _NAMED} more files"] if len(lines) > _NAMED else []
        return ", ".join(lines[:_NAMED] + more)

    def _describe_contents(self, *, are_same: bool) -> str:
        """What may have changed if no file is known to differ. are_same: all files are known to be the same."""
        others = "images, the template or the tokenizer have changed"
        text = f"the data files are the same, but {others}"
        if not are_same:
            text = f"the data files, {others} (data.cache was switched, so the files cannot be compared)"
        # Without its cache, a run cannot plan rows with samples that have lost their images since.
        skipped = list(self.budget.errors.values())
        return (
            text
            if not skipped
            else f"{text}; {counted(len(skipped), 'sample')} cannot be used now: {skipped[0]}"
        )

    def close(self) -> None:
        """Stop the workers. `next_row` starts them again."""
        self._ahead = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._workers.close()

    def _place(self, saved: dict[str, Any]) -> State:
        """The position of this process in a state."""
        places = saved.get("places")
        if places is None:
            return _object(saved, "place")
        if (
            not isinstance(places, list)
            or self._rank >= len(places)
            or not isinstance(places[self._rank], dict)
        ):
            raise DataError(
                "cannot continue: the checkpoint has no position in the training data for this process"
            )
        place: State = places[self._rank]
        return place

    def _own(self, rows: Iterator[PlannedRow]) -> Iterator[_Row]:
        """The rows of this rank. Inside a step, the state is the start of the step."""
        if self._ranks == 1 or self._is_shared:
            for row in rows:
                yield _Row(row.read(), row.after)
            return
        before = self.state
        while True:
            step = list(self._step(rows))
            own = [step[index] for index in spread([row.patches for row in step], self._ranks)[self._rank]]
            most = -(-len(step) // self._ranks)
            for number in range(most):
                documents = own[number].read() if number < len(own) else ()
                yield _Row(documents, step[-1].after if number + 1 == most else before)
            before = step[-1].after

    def _step(self, rows: Iterator[PlannedRow]) -> Iterator[PlannedRow]:
        """The rows of one step, fewer at the end of the last epoch."""
        for _ in range(self._rows_per_step):
            row = next(rows)
            yield row
            if self._is_over(row.after):
                return

    def _is_over(self, state: State) -> bool:
        """Whether a state is behind the last epoch. For whole epochs, this needs no plan of rows."""
        if self._epochs is None or self.source.epoch(state) + 1 <= self._epochs:
            return False
        if self.source.epoch(state) >= self._epochs:
            return True
        return self.source.epochs_done(state) >= self._epochs - EPOCH_TOLERANCE

    def _account(self, documents: Sequence[Document], decoded: Decoded) -> PackedBatch | None:
        """The row without documents that failed to decode; None if none is left."""
        kept: list[Document] = []
        patches: list[Patches] = []
        for document, found in zip(documents, decoded, strict=True):
            if isinstance(found, SampleError):
                self.budget.spend(found)
            else:
                kept.append(document)
                patches += found
        return pack(kept, patches) if kept else None


def _object(values: dict[str, Any], key: str) -> dict[str, Any]:
    """An object in a state; empty if it is absent or not an object."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def join_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the states of all loaders (`RowLoader.state_dict`), in the order of ranks; each can load the result.

    If all states are equal, the result is one of them, and any number of loaders can load it.
    """
    if all(state == states[0] for state in states):
        return states[0]
    return {"places": [state["place"] for state in states], "settings": states[0]["settings"]}
