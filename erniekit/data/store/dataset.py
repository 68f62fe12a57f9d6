"""Encoded data sources: encodes data files once, and finds the result again in later runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from erniekit import __version__
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.samples import Sample, SampleReader
from erniekit.data.encode.stats import DataStats, ErrorBudget
from erniekit.data.encode.workers import Batch, Workers
from erniekit.data.files.find import Log, Use, expand, resolved
from erniekit.data.files.reader import read_records
from erniekit.data.formats.fields.columns import Columns
from erniekit.data.media.item import MediaSpec
from erniekit.data.store.digests import content_digests, stamp_text
from erniekit.data.store.store import DocumentStore, StoreWriter
from erniekit.errors import DataError

# (bytes read, bytes in all) of all files of a source
Progress = Callable[[int, int], None]
_BATCH = 64  # records that a worker encodes at a time
_DIGESTS = "digests"  # directory of the digests of data files, below the cache
_MOST_FILES = 1000  # a checkpoint keeps no digests of more files
_ALONE = 512  # records to encode in this process before worker processes are started


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """One source of samples: its name in the configuration, its files, their format and the names of their columns."""

    name: str
    files: tuple[Path, ...]
    format: str
    columns: Columns = ()

    @classmethod
    def of(
        cls,
        name: str,
        format: str = "auto",
        use: Use = "train",
        log: Log | None = None,
        columns: Columns = (),
    ) -> SourceFiles:
        """The source `name`: a file, a directory or a pattern. use, log and errors: see `expand`."""
        return cls(name, tuple(expand([name], use, log)), format, columns)


@dataclass(frozen=True)
class Source:
    """An encoded source.

    cached: it was found on disk, nothing was encoded. files: the digest of each data file by name, so that an error can
    name the files that have changed; empty for more than 1,000 files.
    """

    name: str
    store: DocumentStore
    stats: DataStats
    cached: bool
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Encoded sources, one after the other.

    spec: how images and videos are read, None for a text model; budget: decides about samples with errors.
    """

    sources: tuple[Source, ...]
    spec: MediaSpec | None
    budget: ErrorBudget

    @property
    def sizes(self) -> list[int]:
        """Documents of each source."""
        return [len(source.store) for source in self.sources]

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[D] tokens of each document."""
        return np.concatenate([source.store.lengths for source in self.sources])

    @cached_property
    def patches(self) -> npt.NDArray[np.int64]:
        """[D] patches of each document's images and videos."""
        return np.concatenate([source.store.patches for source in self.sources])

    @cached_property
    def stats(self) -> DataStats:
        """Statistics of all sources together."""
        stats = DataStats()
        for source in self.sources:
            stats.merge(source.stats)
        return stats

    @property
    def files(self) -> dict[str, str]:
        """`Source.files` of all sources."""
        return {name: digest for source in self.sources for name, digest in source.files.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Digest of tokens, labels and image names. A plan of rows is only valid for data with the same fingerprint."""
        digests = [source.store.fingerprint for source in self.sources]
        return hashlib.blake2b("\n".join(digests).encode(), digest_size=16).hexdigest()

    def document(self, index: int) -> Document:
        """The document at a position in all sources, one after the other. Raises IndexError."""
        for source in self.sources:
            if index < len(source.store):
                return source.store[index]
            index -= len(source.store)
        raise IndexError(index)

    def close(self) -> None:
        """Close the files."""
        for source in self.sources:
            source.store.close()


def load_source(
    source: SourceFiles,
    reader: SampleReader,
    budget: ErrorBudget,
    cache_dir: Path,
    *,
    kept: bool = True,
    workers: int = 0,
    progress: Progress | None = None,
    media_may_be_gone: bool = False,
) -> Source:
    """Find a source in the cache, or encode it into a new store below cache_dir.

    A store is used again while the content of the data files, the tokenizer, the template and all settings that shape
    a document stay the same, and no image file has changed since it was measured. Data files are only read to compare
    their content if their size or times have changed. media_may_be_gone: a store is also used if images were deleted;
    their samples then fail when they are loaded. kept: whether cache_dir outlives the process. workers: number of
    processes that encode. Raises DataError if a file cannot be read or no sample can be used, and the errors of
    `budget`.
    """
    files = _contents(source, cache_dir if kept else None)
    directory = cache_dir / _key(source, reader, files)
    store = DocumentStore.find(directory)
    if store is not None and store.changed_media(may_be_gone=media_may_be_gone) is None:
        return _found(source.name, store, budget)
    if store is not None:
        store.close()
        _retire(directory)
    stats, errors = DataStats(), []
    with StoreWriter(directory) as writer:
        for sample in _samples(source, reader, workers, progress):
            for error in sample.errors:
                budget.spend(error)
                errors.append(error)
            for document in sample.documents:
                writer.add(document)
            stats.add(sample)
        if not stats.samples:
            first = f"; the first: {errors[0]}" if errors else ""
            raise DataError(f"{source.name}: no sample can be used ({budget.by_reason()}){first}")
        stats.skipped.update(error.reason for error in errors)
        described = [[error.sample_id, error.reason, error.detail] for error in errors]
        named = {name: digest for name, _, digest in files} if len(files) <= _MOST_FILES else {}
        writer.finish({"stats": stats.as_dict(), "errors": described, "files": named})
    return Source(source.name, DocumentStore(directory), stats, cached=False, files=named)


def open_source(name: str, directory: Path, budget: ErrorBudget) -> Source:
    """Open a source that is already encoded; its data files are not read. Raises as `load_source`."""
    return _found(name, DocumentStore(directory), budget)


def read_batches(source: SourceFiles, progress: Progress | None = None) -> Iterator[Batch]:
    """The records of a source in small batches, each with the directory of its file."""
    sizes = [path.stat().st_size for path in source.files]
    before = 0
    for path, size in zip(source.files, sizes, strict=True):
        reading = read_records(path, columns=source.columns)
        while records := tuple(islice(reading, _BATCH)):
            if progress is not None:
                progress(before + records[-1].bytes_read, sum(sizes))
            yield records, path.parent, source.format
        before += size
    if progress is not None:
        progress(before, sum(sizes))


def _samples(
    source: SourceFiles, reader: SampleReader, workers: int, progress: Progress | None
) -> Iterator[Sample]:
    batches = read_batches(source, progress)
    head: list[Batch] = []
    records = 0
    for batch in batches:
        head.append(batch)
        records += len(batch[0])
        if records >= _ALONE:
            break
    alone = Workers(0, None, reader)
    yield from chain.from_iterable(alone.encode(head))
    pool = Workers(workers, None, reader)
    try:
        yield from chain.from_iterable(pool.encode(batches))
    finally:
        pool.close()


def _found(name: str, store: DocumentStore, budget: ErrorBudget) -> Source:
    for sample_id, reason, detail in store.summary["errors"]:
        budget.spend(SampleError(sample_id, reason, detail))
    stats = DataStats.from_dict(store.summary["stats"])
    return Source(name, store, stats, cached=True, files=store.summary.get("files", {}))


def _contents(source: SourceFiles, cache_dir: Path | None) -> list[tuple[str, str, str]]:
    """Name, resolved path and content digest of each file. Without a cache, the stamp replaces the digest: no file is
    read.

    Both paths matter: sample ids contain the name as written, and image paths are relative to the resolved one.
    """
    places = resolved(source.files)
    if cache_dir is None:
        contents = [stamp_text(path) for path in places]
    else:
        contents = content_digests(places, cache_dir / _DIGESTS)
    return [
        (str(path), str(place), text)
        for path, place, text in zip(source.files, places, contents, strict=True)
    ]


def _key(source: SourceFiles, reader: SampleReader, files: Sequence[tuple[str, str, str]]) -> str:
    """The name of the store: a digest of everything that its documents depend on."""
    settings: dict[str, Any] = {
        "erniekit": __version__,
        "encoder": reader.encoder.identity,
        "format": source.format,
        "columns": source.columns,
        "max_length": reader.max_length,
        "on_long": reader.on_long,
        "media": asdict(reader.access),
        "pairs": reader.pairs,
        "files": files,
    }
    return hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()


def _retire(directory: Path) -> None:
    """Delete a store that does not match its images any more."""
    shutil.rmtree(directory, ignore_errors=True)
