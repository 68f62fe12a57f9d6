"""The loader of packed rows: decodes their images, and saves and restores its exact place."""

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
from erniekit.errors import DataError, ErnieKitError

# Consecutive rows without anything decodable: more than a few broken images.
_EMPTY_ROWS = 1000
_NAMED = 5
EPOCH_TOLERANCE = 1e-9
"""So much less than a fraction of an epoch counts as that fraction, which a sum of floats may miss."""
# Settings of a source that have no key in the configuration, in words.
_SETTINGS = {"processes": "the number of processes that share the stream (--devices / parallel.context)"}


def load_row(documents: Iterable[Document], spec: MediaSpec | None) -> PackedBatch:
    """Documents with their images as one row. spec: Encoder.media_spec. Raises SampleError."""
    documents = list(documents)
    patches = [item for document in documents for item in decode(document.media, document.sample_id, spec)]
    return pack(documents, patches)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row before its images are decoded. after: where the next row stands."""

    documents: Sequence[Document]
    after: State


class RowLoader:
    """Rows of a source, without end.

    state: the place of the next row. workers: what decodes images and videos ahead, in order; their number
    never changes what comes out. An image that fails to decode is raised, or its document left out and
    counted, as `budget` says; a row that is left empty by this is passed over.

    Of `ranks` processes with a loader each, this one gets the rows of `rank`, and reads no others: each step's
    rows_per_step rows are spread so that the patches of their images are even. With `epochs`, which may end inside an
    epoch, the last step has the rows that are left. All processes get the same number of rows of a step; one that has
    none left gets `filler` rows. Where the source already shares its samples among `ranks`, all its rows belong to
    this loader, and the states of the loaders differ.
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
        """The epoch of the next row, from 0."""
        return self.source.epoch(self.state)

    @property
    def epochs_done(self) -> float:
        """Epochs before the next row, as a fraction."""
        return self.source.epochs_done(self.state)

    @property
    def is_over(self) -> bool:
        """Whether the rows of all `epochs` are drawn; never without `epochs`."""
        return self._is_over(self.state)

    def next_row(self) -> PackedBatch:
        """The row at `state`, and moves on. Raises SampleError or DataError as `budget` says."""
        self.prefetch()
        found, self._ahead = self._ahead, None
        assert found is not None
        if isinstance(found, ErnieKitError):
            raise found
        batch, self.state = found
        return batch

    def prefetch(self) -> None:
        """Reads the row that `next_row` returns. What goes wrong is raised there, and `state` does not move."""
        if self._ahead is None:
            try:
                self._ahead = self._read()
            except ErnieKitError as error:
                self._ahead = error

    def _read(self) -> tuple[PackedBatch, State]:
        """The next row, and where the one after it stands."""
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
        """This rank's rows, such as those of `StoredRows.once`. Does not move `state`."""
        for documents, decoded in self._workers.decode(rows, lambda row: row):
            batch = self._account(documents, decoded)
            if batch is not None:
                yield batch
            elif self._ranks > 1:
                yield filler()

    def state_dict(self) -> dict[str, Any]:
        """Where the next row stands, and what must be the same for that to mean the same row.

        JSON values only. Of a source that is shared this is the state of one process: see `join_states`.
        """
        return {"place": self.state, "settings": self.source.settings}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Goes on from a state, which may be that of all processes (`join_states`). Raises as `check_state`."""
        self.check_state(saved)
        self.close()
        self.state = self._place(saved)

    def check_state(self, saved: dict[str, Any]) -> None:
        """Raises DataError when data or settings have changed, or the state is not one."""
        before = _object(saved, "settings")
        for name, value in self.source.settings.items():
            if name in ("fingerprint", "files") or before.get(name) == value:
                continue
            what = _SETTINGS.get(name, name)
            changed = f"{what} was {before.get(name)!r} and is now {value!r}, which changes every row"
            raise DataError(f"cannot continue: {changed}; set it back, or {NEW_RUN}")
        if before.get("fingerprint") != self.source.settings["fingerprint"]:
            raise DataError(
                f"cannot continue: {self.describe_change(saved)} since the checkpoint; put them back, or {NEW_RUN}"
            )
        self.source.check(self._place(saved))

    def describe_change(self, saved: dict[str, Any]) -> str:
        """What of the data differs from that of a state, in words: its files, by name, or what else it depends on."""
        before = _object(_object(saved, "settings"), "files")
        now = self.source.settings["files"]
        if not before or not now:
            return "the training data, its template or its tokenizer have changed"
        lines = [f"{name} has changed" for name in now if name in before and before[name] != now[name]]
        lines += [f"{name} is not in data.train any more" for name in before if name not in now]
        lines += [f"{name} is new in data.train" for name in now if name not in before]
        if not lines:
            return "the data files are the same, but images, the template or the tokenizer have changed"
        more = [f"{len(lines) - _NAMED} more files"] if len(lines) > _NAMED else []
        return ", ".join(lines[:_NAMED] + more)

    def close(self) -> None:
        """Stops the workers. The next row, if asked for, starts them anew."""
        self._ahead = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._workers.close()

    def _place(self, saved: dict[str, Any]) -> State:
        """This process's place in a state."""
        places = saved.get("places")
        if places is None:
            return _object(saved, "place")
        if (
            not isinstance(places, list)
            or self._rank >= len(places)
            or not isinstance(places[self._rank], dict)
        ):
            raise DataError(
                "cannot continue: the checkpoint has no place in the training data for this process"
            )
        place: State = places[self._rank]
        return place

    def _own(self, rows: Iterator[PlannedRow]) -> Iterator[_Row]:
        """The rows of this rank. Between the first and the last of a step the state stays at its start."""
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
        """Whether the rows before a place are those of all epochs. Of whole epochs no plan is needed to tell."""
        if self._epochs is None or self.source.epoch(state) + 1 <= self._epochs:
            return False
        if self.source.epoch(state) >= self._epochs:
            return True
        return self.source.epochs_done(state) >= self._epochs - EPOCH_TOLERANCE

    def _account(self, documents: Sequence[Document], decoded: Decoded) -> PackedBatch | None:
        """The row without the documents that failed; None when none is left."""
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
    """An object in a state; empty where it is absent or none."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def join_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The states of all `ranks` loaders (`RowLoader.state_dict`), in their order, as one that each can go on from.

    It has the form of one state where that is the same everywhere: then any number of loaders can go on from it.
    """
    if all(state == states[0] for state in states):
        return states[0]
    return {"places": [state["place"] for state in states], "settings": states[0]["settings"]}
