"""Rows of streamed data, which is read and encoded during training.

Samples are read in order, one buffer at a time. The samples of a buffer are shuffled and packed together. The state is
the position of each source at the start of the buffer, and the next row of the buffer; resuming reads one buffer again.
Rows of one buffer depend on all its samples, so inside a buffer the state also has the samples that were skipped and a
digest of the others: images may appear or vanish before the run is resumed.

Several processes share each source record by record, in turn, from one pass to the next. Each process mixes and encodes
its own records, and has its own buffers, rows and state.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.samples import TOO_LONG, Sample, SampleReader
from erniekit.data.encode.stats import DataStats, ErrorBudget
from erniekit.data.encode.workers import Batch, Workers
from erniekit.data.files.reader import BadLine, Cursor, Passed, Record, read_share
from erniekit.data.load.mixture import Mixture, next_source, permutation
from erniekit.data.load.packing import plan_rows
from erniekit.data.load.rows import NEW_RUN, PlannedRow, State, mixture_settings
from erniekit.data.store.dataset import SourceFiles
from erniekit.data.store.store import document_digest
from erniekit.display.text import counted, listed
from erniekit.errors import DataError
from erniekit.local_files import open_regular

_END = 1 << 14  # bytes of a file's beginning and end that its digest covers
_BATCH = 64  # records that a worker encodes at a time
_NAMED = 5

_Origin = tuple[Path, str]  # directory of the file, format


@dataclass(frozen=True, slots=True)
class _Place:
    """The position in a source: the number of complete passes, the file, and the position in the file.

    records: number of records before it in all files and passes, including records of other processes.
    """

    passes: int = 0
    file: int = 0
    records: int = 0
    cursor: Cursor = field(default_factory=Cursor)


@dataclass(frozen=True, slots=True)
class _Buffer:
    """The number of a buffer, the position of every source at its start, and the samples drawn from each before it."""

    number: int
    places: tuple[_Place, ...]
    drawn: tuple[int, ...]

    def state(self, row: int) -> State:
        places = [asdict(place) for place in self.places]
        return {"buffer": self.number, "row": row, "places": places, "drawn": list(self.drawn)}

    @classmethod
    def of(cls, state: State) -> _Buffer:
        places = tuple(_Place(**{**place, "cursor": Cursor(**place["cursor"])}) for place in state["places"])
        return cls(state["buffer"], places, tuple(state["drawn"]))


@dataclass(frozen=True, slots=True)
class _Contents:
    """The samples of a buffer. errors: of the samples without documents, by the number of the sample in the buffer."""

    documents: list[Document]
    errors: dict[int, SampleError]

    def state(self) -> State:
        digest = hashlib.blake2b(digest_size=16)
        for document in self.documents:
            digest.update(document_digest(document))
        skipped = [
            [number, error.sample_id, error.reason, error.detail] for number, error in self.errors.items()
        ]
        return {"digest": digest.hexdigest(), "skipped": skipped}

    def changed(self, skipped: Mapping[int, SampleError]) -> DataError:
        """The error to raise if the contents differ from a saved state, which had skipped the samples `skipped`."""
        new = [str(error) for number, error in self.errors.items() if number not in skipped]
        first, last = self.documents[0].sample_id, self.documents[-1].sample_id
        found = (
            f"{counted(len(new), 'sample')} of the rows in the checkpoint cannot be used now: {listed(new, _NAMED)}"
            if new
            else f"images or data files have changed since the checkpoint, between samples {first} and {last}"
        )
        return DataError(f"cannot continue: {found}; put them back, or {NEW_RUN}")


class StreamedRows:
    """Rows of streamed sources, which repeat without end.

    workers: encode the samples, with `reader`. buffer: number of samples that are shuffled and packed together.
    mixture.stop is not used: a source that ends starts again. stats: statistics of the samples read so far. digests:
    `files_digest` of each source, if known. rank, ranks: this process among those that share the samples. on_notice:
    called once for each kind of notice about the data (`Notices`).
    """

    def __init__(
        self,
        sources: Sequence[SourceFiles],
        reader: SampleReader,
        mixture: Mixture,
        budget: ErrorBudget,
        workers: Workers,
        *,
        buffer: int,
        digests: Sequence[str] | None = None,
        rank: int = 0,
        ranks: int = 1,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        self.sources = tuple(sources)
        self.rank, self.ranks = rank, ranks
        self._digests = digests
        self._on_notice = on_notice
        self.mixture = mixture
        self.budget = budget
        self.stats = DataStats()
        self._reader, self._workers = reader, workers
        self._max_length, self._buffer = reader.max_length, buffer
        # Files stay open from one buffer to the next: some formats cannot be opened in the middle.
        self._open: tuple[_Buffer, list[_Reading]] | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        digests = self._digests or [files_digest(source.files) for source in self.sources]
        formats = [(source.format, source.columns) for source in self.sources]
        files = [self._reader.encoder.identity, *zip(digests, formats, strict=True)]
        fingerprint = hashlib.blake2b(json.dumps(files).encode(), digest_size=16).hexdigest()
        shared = mixture_settings(self.mixture, self._max_length)
        named = {source.name: digest for source, digest in zip(self.sources, digests, strict=True)}
        own = {"buffer": self._buffer, "processes": self.ranks, "fingerprint": fingerprint, "files": named}
        return {**shared, **own}

    def start(self) -> State:
        count = len(self.sources)
        return _Buffer(0, (_Place(),) * count, (0,) * count).state(0)

    def check(self, state: State) -> None:
        """See `PlannedRows`. Does not check the row, which takes reading the buffer."""
        try:
            known = len(_Buffer.of(state).places) == len(self.sources)
            _skipped(state)
        except (KeyError, TypeError, ValueError):
            known = False
        if not known:
            raise DataError("cannot continue: the checkpoint's position is not one in these streamed sources")

    def rows(self, state: State) -> Iterator[PlannedRow]:
        buffer, row = _Buffer.of(state), int(state["row"])
        while True:
            skipped = _skipped(state)
            contents, following = self._read(buffer, skipped)
            documents, summary = contents.documents, contents.state()
            if "digest" in state and state["digest"] != summary["digest"]:
                raise contents.changed(skipped)
            plan = self._plan(buffer.number, documents)
            if row >= len(plan):
                raise DataError(
                    f"cannot continue: there is no row {row} in buffer {buffer.number} of the stream"
                )
            for index in range(row, len(plan)):
                last = index + 1 == len(plan)
                after = following.state(0) if last else buffer.state(index + 1) | summary
                row_documents = [documents[number] for number in plan[index]]
                patches = sum(document.num_patches for document in row_documents)
                yield PlannedRow(patches, partial(list, row_documents), after)
            buffer, row, state = following, 0, {}

    def epoch(self, state: State) -> int:
        """The number of times that all sources were read to their end."""
        return min(int(place["passes"]) for place in state["places"])

    def epochs_done(self, state: State) -> float:
        """See `PlannedRows`; counts whole files."""
        return min(
            place["passes"] + place["file"] / len(source.files)
            for place, source in zip(state["places"], self.sources, strict=True)
        )

    def _plan(self, number: int, documents: Sequence[Document]) -> list[tuple[int, ...]]:
        count = len(documents)
        order = permutation(count, self.mixture.seed, number) if self.mixture.shuffle else np.arange(count)
        lengths = np.asarray([len(document) for document in documents], np.int64)
        patches = np.asarray([document.num_patches for document in documents], np.int64)
        return self.mixture.order_rows(plan_rows(order, lengths, patches, self._max_length), number)

    def _read(self, buffer: _Buffer, skipped: Mapping[int, SampleError]) -> tuple[_Contents, _Buffer]:
        """The contents of a buffer, and the buffer that follows. skipped: samples to skip again, by number."""
        if self._open is not None and self._open[0] == buffer:
            reading = self._open[1]
        else:
            reading = [
                _Reading(source, place, self.rank, self.ranks)
                for source, place in zip(self.sources, buffer.places, strict=True)
            ]
        drawn = list(buffer.drawn)
        documents: list[Document] = []
        errors: dict[int, SampleError] = {}
        encoded = chain.from_iterable(self._workers.encode(self._batches(reading, drawn)))
        for number, found in enumerate(encoded):
            sample = Sample(errors=(skipped[number],)) if number in skipped else found
            for error in sample.errors:
                self.budget.spend(error)
            # With data.on_long drop, samples that are too long may be many, and they stay too long.
            if sample.errors and not sample.documents and sample.errors[0].reason != TOO_LONG:
                errors[number] = sample.errors[0]
            documents += sample.documents
            self._add(sample)
        if not documents:
            raise DataError(
                f"none of {self._buffer:,} samples in a row can be used ({self.budget.by_reason()})"
            )
        places = tuple(source.place for source in reading)
        following = _Buffer(buffer.number + 1, places, tuple(drawn))
        self._open = following, reading
        return _Contents(documents, errors), following

    def _add(self, sample: Sample) -> None:
        known = set(self.stats.notices.counts) if sample.notices else ()
        self.stats.add(sample)
        if self._on_notice is not None and sample.notices:
            for text in self.stats.notices.counts.keys() - known:
                self._on_notice(f"note: {text}; the first is {self.stats.notices.first[text]}")

    def _batches(self, reading: Sequence[_Reading], drawn: list[int]) -> Iterator[Batch]:
        """The records of one buffer, in batches. A batch has records of one file."""
        taken: list[tuple[_Origin, Record | BadLine]] = []
        for number in range(self._buffer):
            source = self._source(reading, drawn)
            taken.append(reading[source].next())
            drawn[source] += 1
            if len(taken) == _BATCH or number + 1 == self._buffer:
                # Group neighbours only, so that the order of samples does not change.
                for (base_dir, data_format), run in groupby(taken, key=lambda item: item[0]):
                    yield [record for _, record in run], base_dir, data_format
                taken = []

    def _source(self, reading: Sequence[_Reading], drawn: Sequence[int]) -> int:
        if self.mixture.mix == "concat":
            passes = [source.place.passes for source in reading]
            return passes.index(min(passes))
        if self.mixture.mix == "interleave":
            return sum(drawn) % len(reading)
        return next_source(self.mixture.weights, drawn)


def _skipped(state: State) -> dict[int, SampleError]:
    """The skipped samples in a state, by their number in the buffer."""
    return {number: SampleError(*error) for number, *error in state.get("skipped", ())}


def files_digest(files: Sequence[Path]) -> str:
    """A digest of the names, sizes, beginnings and ends of files. Reading them completely would take too long.

    Raises DataError for a file that cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(json.dumps([path.name, size]).encode())
                digest.update(file.read(_END))
                file.seek(max(0, size - _END))
                digest.update(file.read(_END))
        except OSError as error:
            raise DataError(f"{path}: cannot read the data file: {error.strerror or error}") from error
    return digest.hexdigest()


class _Reading:
    """Reads this process's records of a source, file after file, without end. place: the position of the next one."""

    _ahead: Record | BadLine

    def __init__(self, source: SourceFiles, place: _Place, rank: int, ranks: int) -> None:
        self.place = place
        self._source = source
        self._rank, self._ranks = rank, ranks
        self._open()
        self._seek()
        has_left = (self.place.passes, self.place.file) != (place.passes, place.file)
        if has_left and place.cursor.records:
            raise DataError(f"{source.files[place.file]}: has fewer samples than when it was read before")

    def next(self) -> tuple[_Origin, Record | BadLine]:
        """The next record, and its origin."""
        record, origin = self._ahead, (self._file.parent, self._source.format)
        self._move(record.after)
        self._seek()
        return origin, record

    def _seek(self) -> None:
        """Find the next record of this process, if necessary in another file or pass."""
        while True:
            for record in self._records:
                if not isinstance(record, Passed):
                    self._ahead = record
                    return
                self._move(record.after)
            place = self.place
            is_last = place.file + 1 == len(self._source.files)
            passes, file = (place.passes + 1, 0) if is_last else (place.passes, place.file + 1)
            self.place = _Place(passes, file, place.records)
            self._open()

    def _move(self, after: Cursor) -> None:
        self.place = replace(self.place, cursor=after, records=self.place.records + 1)

    def _open(self) -> None:
        place = self.place
        self._file = self._source.files[place.file]
        first = place.records - place.cursor.records  # number of the file's first record

        def is_own(number: int) -> bool:
            return (first + number) % self._ranks == self._rank

        self._records = read_share(self._file, place.cursor, is_own, self._source.columns)
