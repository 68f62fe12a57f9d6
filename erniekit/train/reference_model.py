"""The reference model of preference training: a frozen model, adapters switched off, or cached log-probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor

from erniekit.checkpoint.hub import weight_files
from erniekit.checkpoint.model_files import model_index
from erniekit.checkpoint.resize import read_rows
from erniekit.checkpoint.state import model_fingerprint
from erniekit.checkpoint.weights import assign
from erniekit.config.choices import Quantize
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.workers import Workers
from erniekit.data.load.batch import PackedBatch, pack
from erniekit.data.load.packing import plan_rows
from erniekit.data.media.patches import Patches
from erniekit.data.store.dataset import Dataset
from erniekit.data.store.references import ReferenceFile
from erniekit.data.store.store import DocumentStore
from erniekit.errors import DataError
from erniekit.lora.adapters import adapter_parameters
from erniekit.lora.layers import Adapter
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.specs import is_vocab_tensor
from erniekit.objectives.device_batch import DeviceBatch
from erniekit.objectives.dpo import branch_logps

# (pairs done, all pairs) of one source
OnProgress = Callable[[int, int], None]
IndexedDocument = tuple[int, Document]


class ReferenceModel:
    """A model without dropout, gradients and router losses."""

    def __init__(self, model: ErnieModel, chunk_tokens: int) -> None:
        self.model = model
        self.chunk_tokens = chunk_tokens

    def __call__(self, batch: PackedBatch | DeviceBatch) -> Tensor:
        training = self.model.training
        self.model.eval()
        try:
            with paddle.no_grad():
                return branch_logps(self.model, batch, self.chunk_tokens)[0]
        finally:
            if training:
                self.model.train()


class AdapterDisabledReference(ReferenceModel):
    """The trained model with its adapters switched off.

    base: the directory of the base model. Parameters that are trained besides the adapters (routers) have the values
    of the base model while the reference computes.
    """

    def __init__(self, model: ErnieModel, chunk_tokens: int, base: Path) -> None:
        super().__init__(model, chunk_tokens)
        self._adapters = [layer for layer in model.sublayers() if isinstance(layer, Adapter)]
        whole = {name: p for name, p in adapter_parameters(model).items() if ".lora_" not in name}
        self._whole: list[tuple[Tensor, Tensor]] = []
        index = model_index(base, ErnieConfig.from_dir(base)) if whole else {}
        for name, parameter in whole.items():
            value = paddle.empty_like(parameter)
            rows = int(parameter.shape[0]) if is_vocab_tensor(name) else None
            assign(value, read_rows(index[name], rows), index[name].dtype)
            self._whole.append((parameter, value))

    def __call__(self, batch: PackedBatch | DeviceBatch) -> Tensor:
        with self._base_weights():
            return super().__call__(batch)

    @contextmanager
    def _base_weights(self) -> Iterator[None]:
        trained = [parameter.detach().clone() for parameter, _ in self._whole]
        try:
            for layer in self._adapters:
                layer.active = False
            _assign((parameter, value) for parameter, value in self._whole)
            yield
        finally:
            for layer in self._adapters:
                layer.active = True
            _assign((parameter, before) for (parameter, _), before in zip(self._whole, trained, strict=True))


def _assign(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy each value into its parameter on the device: `set_value` copies through the host."""
    with paddle.no_grad():
        for parameter, value in values:
            paddle.assign(value, output=parameter)


def cached_reference(batch: DeviceBatch) -> Tensor:
    """A `Reference` that reads the log-probabilities in the batch. Raises DataError where one is missing."""
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
    """A digest of a checkpoint on disk and of how it is computed: dtype and model.quantize.

    vocab_size: rows of the embedding in memory, over which probabilities are normalised. The digest includes the
    modification times of the weight files: `model_fingerprint` reads only their ends, and merging adapters may change
    only what is between them.
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

    key: from `model_key`; make_reference: called when the first row is computed. Rows are packed as for training. The
    result of each row is stored on disk, so that an interrupted computation continues where it stopped. A pair with
    images that cannot be read is raised or skipped as the dataset's budget says; the next run tries it again. Returns
    the numbers of pairs that were cached before and that were computed.
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
