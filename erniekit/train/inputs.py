"""The data of a run: training rows and eval rows, encoded with the tokenizer and template of one checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypedDict

from erniekit.config import Config, DataConfig, SourceConfig
from erniekit.data.encode.encoder import Encoder, run_encoder
from erniekit.data.encode.samples import SampleReader, pair_mode
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.workers import Workers
from erniekit.data.files.find import Use, expand
from erniekit.data.files.hub import local_entry
from erniekit.data.formats.fields.columns import read_columns
from erniekit.data.load.loader import RowLoader
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.rows import StoredRows
from erniekit.data.load.stream import StreamedRows, files_digest
from erniekit.data.media.access import MediaAccess
from erniekit.data.store.dataset import (
    Dataset,
    SourceFiles,
    load_source,
    open_source,
)
from erniekit.data.store.store import DocumentStore
from erniekit.display.progress import log_progress
from erniekit.errors import DataError
from erniekit.evaluation.evaluator import EvalRows
from erniekit.local_files import placeholder_problem
from erniekit.paths import HUB, data_cache_dir
from erniekit.scratch import temporary_directory
from erniekit.train.activations import RowShape
from erniekit.train.describe import describe_data, describe_skipped
from erniekit.train.plan import largest_row

Log = Callable[[str], None]


class StoredSource(TypedDict):
    """JSON with which another process opens an encoded source. name: of the source, for errors."""

    name: str
    store: str
    id: str


class StreamedSource(TypedDict):
    """JSON with which another process reads a streamed source. digest: see `files_digest`."""

    name: str
    files: list[str]
    digest: str


class Sources(TypedDict):
    """The sources of a run, after their data was downloaded and encoded. Eval data is never streamed."""

    stored: list[StoredSource]
    streamed: list[StreamedSource]
    eval: list[StoredSource]


_PROGRESS_SECONDS = 5.0
_NAMES: dict[Use, str] = {"train": "training data", "eval": "eval data"}


class DataProcesses(Protocol):
    """The processes of a run, which share its data: `erniekit.distributed.context.DistributedContext`."""

    rank: int
    size: int

    def make_once(
        self, what: str, make: Callable[[], Sources], is_here: Callable[[Sources], bool]
    ) -> Sources:
        """Call `make` once for each shared disk, and return its result in every process."""
        ...


class _OneProcess:
    rank, size = 0, 1

    def make_once(
        self, what: str, make: Callable[[], Sources], is_here: Callable[[Sources], bool]
    ) -> Sources:
        return make()


@dataclass(frozen=True)
class Inputs:
    """The data of a run. train: the loader of `rows`; eval_rows: None if data.eval is empty."""

    encoder: Encoder
    train: RowLoader
    rows: StoredRows | StreamedRows
    eval_rows: EvalRows | None
    cleanup: ExitStack

    @property
    def datasets(self) -> list[Dataset]:
        """All data that is encoded on disk, for training and evaluation."""
        rows = (self.rows, None if self.eval_rows is None else self.eval_rows.rows)
        return [one.dataset for one in rows if isinstance(one, StoredRows)]

    def largest_row(self, max_length: int) -> RowShape | None:
        """The largest packed sequence of the training data; see `largest_row`."""
        spec = self.encoder.image_spec
        return largest_row(self.rows, max_length, 1 if spec is None else spec.merge_size)

    def close(self) -> None:
        """Stop the worker processes, close files, and delete samples that were encoded for this run only."""
        self.cleanup.close()


def load_inputs(
    config: Config,
    log: Log,
    processes: DataProcesses | None = None,
    *,
    is_resumed: bool = False,
    warn: Log | None = None,
) -> Inputs:
    """Read and encode all data, and log its statistics. Raises ErnieKitError for errors in the data.

    processes: the processes that share the rows. One of them encodes the data, and the others open the result.
    is_resumed: whether a run is resumed. Its rows must stay the same, so with data.on_error skip, samples with deleted
    images are only skipped when they are loaded. warn: prints what concerns this process alone; default `log`.
    """
    data, processes, warn = config.data, processes or _OneProcess(), warn or log
    check_sources(data)
    encoder = run_encoder(config)
    for note in encoder.limits.notes():
        log(f"note: {note}")
    with ExitStack() as stack:
        sources = processes.make_once(
            "encoding the data", lambda: _prepare(config, encoder, log, stack, is_resumed), _are_visible
        )
        mixture = Mixture(
            data.mix, data.stop, tuple(s.weight for s in data.train), data.shuffle, config.train.seed
        )
        budget = _budget(data)
        reader = _reader(config, encoder)
        workers = Workers(data.workers, encoder.media_spec, reader, log=warn)
        stack.callback(workers.close)
        rows: StoredRows | StreamedRows
        if data.streaming:
            rows = _streamed_rows(data, sources["streamed"], reader, mixture, budget, workers, processes, log)
        else:
            rows = StoredRows(_open(sources["stored"], encoder, budget, stack), mixture, data.max_length)
        loader = RowLoader(
            rows,
            budget,
            workers,
            rows_per_step=config.num_rows(processes.size),
            epochs=config.train.epochs if config.train.max_steps is None else None,
            rank=processes.rank,
            ranks=processes.size,
        )
        stack.callback(loader.close)
        eval_rows = None
        if data.eval:
            eval_budget = _budget(data)
            dataset = _open(sources["eval"], encoder, eval_budget, stack)
            eval_rows = _eval_rows(config, dataset, eval_budget, workers, processes)
            eval_budget.on_skip = lambda error: log(f"skipped: {error}")
        # From now on, samples are skipped when their images cannot be decoded, or while they are streamed. Rank 0 hears
        # of all of them (`SkippedSampleSync`).
        budget.on_skip = lambda error: log(f"skipped: {error}")
        return Inputs(encoder, loader, rows, eval_rows, stack.pop_all())


def check_sources(data: DataConfig) -> None:
    """Raise ErnieKitError for unknown columns, and files that are missing or not downloaded, before encoding."""
    by_use: list[tuple[Use, Sequence[SourceConfig]]] = [("train", data.train), ("eval", data.eval)]
    for use, sources in by_use:
        for source in sources:
            read_columns(source.columns, source.path)
        paths = [source.path for source in sources if not source.path.startswith(HUB)]
        for file in expand(paths, use):
            problem = placeholder_problem(file)
            if problem is not None:
                raise DataError(f"{file}: {problem}")


def _streamed_rows(
    data: DataConfig,
    sources: Sequence[StreamedSource],
    reader: SampleReader,
    mixture: Mixture,
    budget: ErrorBudget,
    workers: Workers,
    processes: DataProcesses,
    log: Log,
) -> StreamedRows:
    files = [
        SourceFiles(
            source["name"],
            tuple(map(Path, source["files"])),
            settings.format or data.format,
            read_columns(settings.columns, settings.path),
        )
        for settings, source in zip(data.train, sources, strict=True)
    ]
    return StreamedRows(
        files,
        reader,
        mixture,
        budget,
        workers,
        buffer=data.buffer,
        digests=[source["digest"] for source in sources],
        rank=processes.rank,
        ranks=processes.size,
        on_notice=log,
    )


def _eval_rows(
    config: Config, dataset: Dataset, budget: ErrorBudget, workers: Workers, processes: DataProcesses
) -> EvalRows:
    mixture = Mixture("concat", "first_exhausted", (1.0,) * len(config.data.eval), False, 0)
    rows = StoredRows(dataset, mixture, config.data.max_length)
    rank, ranks = processes.rank, processes.size
    return EvalRows(rows, RowLoader(rows, budget, workers, rank=rank, ranks=ranks), rank, ranks)


def _prepare(config: Config, encoder: Encoder, log: Log, stack: ExitStack, is_resumed: bool) -> Sources:
    """Download datasets of the Hub, and encode all samples.

    stack: deletes encoded samples that are only for this run.
    """
    data = config.data
    cache = _cache_dir(data, stack)

    def encode(use: Use, sources: Sequence[SourceConfig]) -> list[StoredSource]:
        may_be_gone = is_resumed and data.on_error == "skip"
        return _encode(use, sources, config, encoder, cache, log, may_be_gone) if sources else []

    return {
        "streamed": _find_streamed(data, log) if data.streaming else [],
        "stored": [] if data.streaming else encode("train", data.train),
        "eval": encode("eval", data.eval),
    }


def _find_streamed(data: DataConfig, log: Log) -> list[StreamedSource]:
    found: list[StreamedSource] = []
    for source in data.train:
        path = local_entry(source.path, data.cache_dir, "train", log)
        files = SourceFiles.of(path, use="train", log=log).files
        found.append({"name": path, "files": [str(file) for file in files], "digest": files_digest(files)})
    log(f"{_NAMES['train']}: streamed, {', '.join(source.path for source in data.train)}")
    return found


def _are_visible(sources: Sources) -> bool:
    """Whether this process sees the files that another one has prepared."""
    files = (file for source in sources["streamed"] for file in source["files"])
    stored = (*sources["stored"], *sources["eval"])
    return all(Path(file).exists() for file in files) and all(map(_is_visible, stored))


def _is_visible(source: StoredSource) -> bool:
    store = DocumentStore.find(Path(source["store"]))
    if store is None:
        return False
    store.close()
    return store.id == source["id"]


def _open(stored: Sequence[StoredSource], encoder: Encoder, budget: ErrorBudget, stack: ExitStack) -> Dataset:
    sources = []
    for source in stored:
        sources.append(open_source(source["name"], Path(source["store"]), budget))
        stack.callback(sources[-1].store.close)
    return Dataset(tuple(sources), encoder.media_spec, budget)


def _encode(
    use: Use,
    sources: Sequence[SourceConfig],
    config: Config,
    encoder: Encoder,
    cache: Path,
    log: Log,
    media_may_be_gone: bool,
) -> list[StoredSource]:
    """Encode samples that are not encoded yet, and log statistics of all samples."""
    data, loaded = config.data, []
    budget = _budget(data)
    paths = [local_entry(source.path, data.cache_dir, use, log) for source in sources]
    for source, path in zip(sources, paths, strict=True):
        columns = read_columns(source.columns, source.path)
        files = SourceFiles.of(path, source.format or data.format, use, log, columns)
        started = time.monotonic()
        found = load_source(
            files,
            _reader(config, encoder),
            budget,
            cache,
            kept=data.cache,
            workers=data.workers,
            media_may_be_gone=media_may_be_gone,
            progress=partial(log_progress(log, "bytes", _PROGRESS_SECONDS), f"  encoding {source.path}"),
        )
        found.store.close()
        loaded.append(found)
        if len(sources) > 1:
            stats = found.stats
            log(f"  {source.path}: {stats.samples:,} samples, {stats.tokens:,} tokens")
        if not found.cached and time.monotonic() - started > _PROGRESS_SECONDS:
            kept = ", kept for the next run" if data.cache else ""
            log(f"  {source.path}: encoded in {time.monotonic() - started:.0f} s{kept}")
    dataset = Dataset(tuple(loaded), encoder.media_spec, budget)
    lines = describe_data(_NAMES[use], dataset.stats, config.task)
    if all(source.cached for source in loaded):
        lines[0] += " (encoded before)"
    for line in [*lines, *describe_skipped(budget)]:
        log(line)
    return [
        {"name": path, "store": str(found.store.directory), "id": found.store.id}
        for path, found in zip(paths, loaded, strict=True)
    ]


def _budget(data: DataConfig) -> ErrorBudget:
    return ErrorBudget(data.on_error, data.max_errors, data.on_long)


def _reader(config: Config, encoder: Encoder) -> SampleReader:
    data = config.data
    pairs = pair_mode(config.task, data.share_prompt)
    return SampleReader(encoder, data.max_length, data.on_long, MediaAccess.of(data), pairs)


def _cache_dir(data: DataConfig, stack: ExitStack) -> Path:
    if not data.cache:
        return stack.enter_context(temporary_directory("erniekit-data-"))
    return data_cache_dir(data.cache_dir)
