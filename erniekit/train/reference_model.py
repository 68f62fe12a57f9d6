"""Log-probabilities of the reference model of preference training, computed once and cached with the data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor

from erniekit.checkpoint.hub import weight_files
from erniekit.checkpoint.state import model_fingerprint
from erniekit.config.choices import Quantize
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.workers import Workers
from erniekit.data.load.batch import pack
from erniekit.data.load.packing import plan_rows
from erniekit.data.media.patches import Patches
from erniekit.data.store.dataset import Dataset
from erniekit.data.store.references import ReferenceFile
from erniekit.data.store.store import DocumentStore
from erniekit.errors import DataError
from erniekit.objectives.device_batch import DeviceBatch
from erniekit.objectives.reference_model import ReferenceModel

# (pairs done, all pairs) of one source
OnProgress = Callable[[int, int], None]
IndexedDocument = tuple[int, Document]


def cached_reference(batch: DeviceBatch) -> Tensor:
    """A `Reference` that returns the log-probabilities stored in the batch. Raises DataError if one is missing."""
    names, values = batch.batch.sample_ids, batch.batch.reference
    if not names:
        return paddle.zeros([0], "float32")
    if batch.reference is None or values is None or np.isnan(values).any():
        raise DataError(
            f"the log-probabilities of the reference are missing for some of {', '.join(names[:8])} (their images "
            "could not be read when they were computed): start the run again"
        )
    return batch.reference


def model_key(directory: str | Path, dtype: str, vocab_size: int, quantize: Quantize = "none") -> str:
    """A digest of a checkpoint on disk and of its computation: dtype and model.quantize.

    vocab_size: rows of the embedding in memory, over which probabilities are normalised. The digest includes the
    modification times of the weight files, since `model_fingerprint` only reads their beginnings and ends, which
    merging adapters may not change.
    """
    directory = Path(directory)
    times = [file.stat().st_mtime_ns for file in weight_files(directory)]
    settings = (dtype, quantize, vocab_size, model_fingerprint(directory)["digest"], times)
    return hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()


def cache_references(
    dataset: Dataset,
    key: str,
    make_reference: Callable[[], ReferenceModel],
    *,
    max_length: int,
    workers: int,
    progress: OnProgress,
) -> tuple[int, int]:
    """Compute the reference's log-probabilities of all pairs of a dataset that are not cached.

    key: from `model_key`; make_reference: called before the first row is computed. Rows are packed as for training, and
    the result of each row is stored at once, so that an interrupted computation continues where it stopped. If the
    images of a pair cannot be read, the dataset's budget raises the error or skips the pair, and the next run tries it
    again. Returns the numbers of pairs that were cached before and that were computed.
    """
    reference = cache(make_reference)
    known = computed = 0
    pool = Workers(workers, dataset.spec)
    try:
        for source in dataset.sources:
            with closing(ReferenceFile(source.store, key)) as file:
                known += len(source.store) - len(file.missing)
                computed += _fill(file, source.store, reference, pool, dataset.budget, max_length, progress)
                source.store.references = file.values
    finally:
        pool.close()
    return known, computed


def _fill(
    file: ReferenceFile,
    store: DocumentStore,
    reference: Callable[[], ReferenceModel],
    pool: Workers,
    budget: ErrorBudget,
    max_length: int,
    progress: OnProgress,
) -> int:
    missing = file.missing

    def rows() -> Iterator[list[IndexedDocument]]:
        for row in plan_rows(missing, store.lengths, store.patches, max_length):
            yield [(index, store[index]) for index in row]

    computed = done = 0
    for row, decoded in pool.decode(rows(), lambda row: [document for _, document in row]):
        kept: list[tuple[int, Document, list[Patches]]] = []
        for (index, document), found in zip(row, decoded, strict=True):
            if isinstance(found, SampleError):
                budget.spend(found)
            else:
                kept.append((index, document, found))
        if kept:
            batch = pack(
                [document for _, document, _ in kept], [item for _, _, found in kept for item in found]
            )
            values = reference()(batch).numpy().reshape(-1, 2)
            file.write([index for index, _, _ in kept], values)
        computed += len(kept)
        done += len(row)
        progress(done, len(missing))
    return computed
