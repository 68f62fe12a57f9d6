"""The data files that a config names, to check or preview."""

from __future__ import annotations

from collections.abc import Sequence

from erniekit.config import DataConfig, SourceConfig
from erniekit.data.files.find import Log, Use, expand
from erniekit.data.files.hub import local_entry
from erniekit.data.formats.fields.columns import read_columns
from erniekit.inspection.check import CheckedFile


def named_files(entries: Sequence[str], format: str, log: Log) -> list[CheckedFile]:
    """The training files of file names, directories and patterns, each once. log, Raises: as in `expand`."""
    return [CheckedFile(path, format) for path in expand(entries, "train", log)]


def training_files(data: DataConfig, format: str | None = None, log: Log | None = None) -> list[CheckedFile]:
    """The files of data.train. format: replaces data.format; log, Raises: as in `expand`."""
    return _files(data.train, data, format, "train", log)


def eval_files(data: DataConfig, format: str | None = None, log: Log | None = None) -> list[CheckedFile]:
    """The files of data.eval, which may be empty. format, log, Raises: as in `training_files`."""
    return _files(data.eval, data, format, "eval", log)


def _files(
    sources: Sequence[SourceConfig], data: DataConfig, format: str | None, use: Use, log: Log | None
) -> list[CheckedFile]:
    return [
        CheckedFile(
            path,
            format or source.format or data.format,
            is_eval=use == "eval",
            columns=read_columns(source.columns, source.path),
        )
        for source in sources
        for path in expand([local_entry(source.path, data.cache_dir, use, log)], use, log)
    ]
