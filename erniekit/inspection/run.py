"""What a run's configuration means for those who only look at its data: its files, and its model's encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from erniekit.config import Config, DataConfig, SourceConfig
from erniekit.data.encode.encoder import EncodeOptions
from erniekit.data.encode.limits import check_max_positions, resized_vocab_size
from erniekit.data.files.find import HUB, Log, Use, expand, hub_file
from erniekit.data.formats.fields.columns import read_columns
from erniekit.data.store.dataset import hub_dir
from erniekit.inspection.check import CheckedFile


def encode_options(run: Config) -> EncodeOptions:
    """How the run encodes its samples. Raises CheckpointError, ConfigError where the model's files do not fit it."""
    path, positions = run.model.path, run.model.max_position_embeddings
    if positions is not None:
        check_max_positions(path, positions)
    return replace(
        EncodeOptions.of_run(run.data.model_dump(), run.train.seed),
        vocab_size=resized_vocab_size(path) if run.model.resize_vocab else None,
        max_positions=positions,
    )


def named_files(entries: Sequence[str], format: str, log: Log) -> list[CheckedFile]:
    """The files that names, directories and patterns mean for training, each once. say: as in `expand`.

    Raises DataError.
    """
    return [CheckedFile(path, format) for path in expand(entries, "train", log)]


def training_files(data: DataConfig, format: str | None = None, log: Log | None = None) -> list[CheckedFile]:
    """The files of data.train. format: in place of the configuration's; say: as in `expand`. Raises DataError."""
    return _files(data.train, data, format, "train", log)


def eval_files(data: DataConfig, format: str | None = None, log: Log | None = None) -> list[CheckedFile]:
    """The files of data.eval, none where it is empty. format, say, Raises: as `training_files`."""
    return _files(data.eval, data, format, "eval", log)


def _files(
    sources: Sequence[SourceConfig], data: DataConfig, format: str | None, use: Use, log: Log | None
) -> list[CheckedFile]:
    return [
        CheckedFile(
            path,
            format or source.format or data.format,
            heldout=use == "eval",
            columns=read_columns(source.columns, source.path),
        )
        for source in sources
        for path in _expand(source, data, use, log)
    ]


def _expand(source: SourceConfig, data: DataConfig, use: Use, log: Log | None) -> list[Path]:
    if source.path.startswith(HUB):
        return [hub_file(source.path, hub_dir(data.cache_dir), use, log)]
    return expand([source.path], use, log)
