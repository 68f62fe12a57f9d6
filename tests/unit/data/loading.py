"""Data files as datasets and loaders, for tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np

from erniekit.config.choices import OnError, OnLong
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.samples import SampleReader
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.workers import Workers
from erniekit.data.load.batch import PackedBatch
from erniekit.data.load.loader import RowLoader
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.rows import StoredRows
from erniekit.data.store.dataset import Dataset, SourceFiles, load_source

ROOM = 160  # tokens of a row


def load(
    encoder: Encoder,
    *paths: Path,
    max_length: int = 4096,
    format: str = "auto",
    on_error: OnError = "raise",
    max_errors: int = 100,
    on_long: OnLong = "error",
    cache: Path | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Each path as a source of a dataset."""
    budget = ErrorBudget(on_error, max_errors, on_long)
    directory = Path(tempfile.mkdtemp(prefix="erniekit-test-")) if cache is None else cache
    reader = SampleReader(encoder, max_length, on_long)
    sources = [
        load_source(
            SourceFiles.of(str(path), format), reader, budget, directory, workers=workers, progress=progress
        )
        for path in paths
    ]
    return Dataset(tuple(sources), encoder.media_spec, budget)


def documents(dataset: Dataset) -> list[Document]:
    """All of a dataset."""
    return [dataset.document(index) for index in range(len(dataset.lengths))]


def make_loader(
    dataset: Dataset,
    workers: int = 0,
    *,
    max_length: int = 160,
    shuffle: bool = True,
    seed: int = 5,
    rows_per_step: int = 1,
    rank: int = 0,
    ranks: int = 1,
    epochs: float | None = None,
) -> RowLoader:
    """A loader over all of a dataset, mixed by concatenation."""
    weights = (1.0,) * len(dataset.sources)
    mixture = Mixture("concat", "first_exhausted", weights, shuffle, seed)
    rows = StoredRows(dataset, mixture, max_length)
    pool = Workers(workers, dataset.spec)
    return RowLoader(
        rows, dataset.budget, pool, rows_per_step=rows_per_step, epochs=epochs, rank=rank, ranks=ranks
    )


def rows_of(loader: RowLoader) -> StoredRows:
    assert isinstance(loader.source, StoredRows)
    return loader.source


def assert_same(one: PackedBatch, other: PackedBatch) -> None:
    for item in fields(PackedBatch):
        a, b = getattr(one, item.name), getattr(other, item.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b
