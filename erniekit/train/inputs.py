"""The data of a run: training rows and held-out rows of one checkpoint's tokenizer and template."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from erniekit.config import Config, DataConfig, SourceConfig
from erniekit.data.account import ErrorBudget
from erniekit.data.batch import PackedBatch
from erniekit.data.dataset import (
    Dataset,
    Progress,
    SourceFiles,
    default_cache_dir,
    load_source,
    temporary_cache,
)
from erniekit.data.encode import EncodeOptions, Encoder, make_encoder
from erniekit.data.files import expand, hub_file
from erniekit.data.loader import RowLoader
from erniekit.data.mixture import Mixture
from erniekit.data.rows import StoredRows
from erniekit.data.samples import SampleReader, pair_mode
from erniekit.data.stream import StreamedRows
from erniekit.data.workers import Workers
from erniekit.errors import DataError
from erniekit.local_files import placeholder_problem
from erniekit.train.plan import describe_data, describe_left_out

Say = Callable[[str], None]
_PROGRESS_SECONDS = 5.0
HUB = "hub:"


@dataclass(frozen=True)
class HeldOut:
    """Rows that are never trained on."""

    rows: StoredRows
    loader: RowLoader

    def once(self) -> Iterator[PackedBatch]:
        """Every row, in an order that never changes; of several processes, a share of them each."""
        return self.loader.once(self.rows.once())

    @property
    def num_rows(self) -> int:
        """Rows that `once` gives, those of all processes together."""
        return self.rows.rows_per_epoch(0)


@dataclass(frozen=True)
class Inputs:
    """`heldout` is None where data.eval is empty. `rows` is what `train` draws from."""

    encoder: Encoder
    train: RowLoader
    rows: StoredRows | StreamedRows
    heldout: HeldOut | None
    cleanup: ExitStack

    def close(self) -> None:
        """Stop the worker processes, close files, remove what was encoded for this run only."""
        self.cleanup.close()


def encode_options(config: Config) -> EncodeOptions:
    """What the configuration says about encoding."""
    return EncodeOptions.of_run(config.data.model_dump(), config.train.seed)


def load_inputs(config: Config, say: Say, rank: int = 0, ranks: int = 1) -> Inputs:
    """Read and encode all data, saying what it holds. Raises ErnieKitError for what is wrong there.

    rank, ranks: of the processes that share the rows.
    """
    data = config.data
    _check_sources(data)
    encoder = make_encoder(
        Path(config.model.path), EncodeOptions.of_run(data.model_dump(), config.train.seed)
    )
    with ExitStack() as stack:
        cache = _cache_dir(data, stack)
        mixture = Mixture(
            data.mix, data.stop, tuple(s.weight for s in data.train), data.shuffle, config.train.seed
        )
        reader = _reader(config, encoder)
        budget = ErrorBudget(data.on_error, data.max_errors, data.on_long)
        workers = Workers(data.workers, encoder.media_spec, reader)
        stack.callback(workers.close)
        rows: StoredRows | StreamedRows
        if data.streaming:
            files = [_files(source, data, cache) for source in data.train]
            rows = StreamedRows(files, reader, mixture, budget, workers, buffer=data.buffer)
            say(f"training data: streamed, {', '.join(source.name for source in files)}")
        else:
            dataset = _load("training data", data.train, config, encoder, budget, cache, say, stack)
            rows = StoredRows(dataset, mixture, data.max_length)
        loader = RowLoader(
            rows,
            budget,
            workers,
            rows_per_step=config.train.rows_per_step,
            epochs=config.train.epochs if config.train.max_steps is None else None,
            rank=rank,
            ranks=ranks,
        )
        stack.callback(loader.close)
        heldout = _heldout(config, encoder, workers, cache, say, stack, rank, ranks) if data.eval else None
        # From here on: pictures that turn out to be damaged when they are decoded, and streamed samples.
        budget.on_skip = lambda error: say(f"skipped: {error}")
        return Inputs(encoder, loader, rows, heldout, stack.pop_all())


def _check_sources(data: DataConfig) -> None:
    """Find what names no file, or a file that was not downloaded, before the first source is encoded."""
    for source in (*data.train, *data.eval):
        for file in () if source.path.startswith(HUB) else expand([source.path]):
            problem = placeholder_problem(file)
            if problem is not None:
                raise DataError(f"{file}: {problem}")


def _heldout(
    config: Config,
    encoder: Encoder,
    workers: Workers,
    cache: Path,
    say: Say,
    stack: ExitStack,
    rank: int,
    ranks: int,
) -> HeldOut:
    data = config.data
    budget = ErrorBudget(data.on_error, data.max_errors, data.on_long)
    dataset = _load("held-out data", data.eval, config, encoder, budget, cache, say, stack)
    mixture = Mixture("concat", "first_exhausted", (1.0,) * len(data.eval), False, 0)
    rows = StoredRows(dataset, mixture, data.max_length)
    loader = RowLoader(rows, budget, workers, rank=rank, ranks=ranks)
    budget.on_skip = lambda error: say(f"skipped: {error}")
    return HeldOut(rows, loader)


def _load(
    name: str,
    sources: Sequence[SourceConfig],
    config: Config,
    encoder: Encoder,
    budget: ErrorBudget,
    cache: Path,
    say: Say,
    stack: ExitStack,
) -> Dataset:
    data, loaded = config.data, []
    for source in sources:
        files = _files(source, data, cache)
        started = time.monotonic()
        found = load_source(
            files,
            _reader(config, encoder),
            budget,
            cache,
            workers=data.workers,
            progress=_progress(source.path, say),
        )
        stack.callback(found.store.close)
        loaded.append(found)
        if len(sources) > 1:
            stats = found.stats
            say(f"  {source.path}: {stats.samples:,} samples, {stats.tokens:,} tokens")
        if not found.cached and time.monotonic() - started > _PROGRESS_SECONDS:
            say(f"  {source.path}: encoded in {time.monotonic() - started:.0f} s, kept for the next run")
    dataset = Dataset(tuple(loaded), encoder.media_spec, budget)
    lines = describe_data(name, dataset.stats, config.task)
    if all(source.cached for source in loaded):
        lines[0] += " (encoded before)"
    for line in [*lines, *describe_left_out(budget.left_out())]:
        say(line)
    return dataset


def _reader(config: Config, encoder: Encoder) -> SampleReader:
    data = config.data
    pairs = pair_mode(config.task, data.share_prompt)
    return SampleReader(encoder, data.max_length, data.on_long, data.allow_urls, pairs)


def _files(source: SourceConfig, data: DataConfig, cache: Path) -> SourceFiles:
    path = str(hub_file(source.path, cache / "hub")) if source.path.startswith(HUB) else source.path
    return SourceFiles.of(path, source.format or data.format)


def _cache_dir(data: DataConfig, stack: ExitStack) -> Path:
    if not data.cache:
        return Path(stack.enter_context(temporary_cache()))
    return Path(data.cache_dir) if data.cache_dir is not None else default_cache_dir()


def _progress(name: str, say: Say) -> Progress:
    """Says how far reading is, now and then."""
    started = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_SECONDS and 0 < done < total:
            last = now
            left = (now - started) * (total - done) / done
            say(f"  encoding {name}: {done / total:.0%}, about {left:,.0f} s left")

    return report
