"""Finds the data files of an entry in the configuration: a file, a directory or a pattern."""

from __future__ import annotations

import difflib
import glob
import mimetypes
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from erniekit.display.text import listed
from erniekit.errors import DataError

# The name of a dataset of the Hugging Face Hub, after "hub:".
HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<split>[\w.\-+%:\[\]]+))?")
Use = Literal["train", "eval"]
Log = Callable[[str], None]
# Files that identify the directory of a model, an adapter or a checkpoint, which has .json files that are not data.
_OF_MODELS = ("tokenizer_config.json", "adapter_config.json", "trainer_state.json")
_SUFFIXES = (".json", ".jsonl", ".parquet", ".arrow", ".csv", ".tsv", ".txt")
_PACKED = ".gz"
_NAMED = 3  # files that a note names
# Metadata files of `datasets` and the Hub.
_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json")
_CACHE_PREFIX = "cache-"  # Arrow files with the results of `Dataset.map`
# Words in file and directory names that indicate a split: those that `datasets` knows, and other common ones.
_SPLIT = re.compile(
    r"(?<![a-z])(?:(?P<train>train(?:ing|set)?)"
    r"|(?P<validation>val(?:id|idation)?|dev(?:el|elopment)?|held[-_ ]?out)"
    r"|(?P<test>test(?:ing|set)?|eval(?:uation)?))(?![a-z])"
    r"|(?P<train_zh>训练)|(?P<validation_zh>验证)|(?P<test_zh>测试|评估)"
)


def expand(entries: Sequence[str | Path], use: Use = "train", log: Log | None = None) -> list[Path]:
    """The data files of entries, in their order, each once.

    An entry is a file with any name; a directory, for all data files in it and its subdirectories, sorted, except
    hidden ones (.txt files only if there are no others, since they are usually notes); or a pattern with `*`, `?`,
    `[...]` and `**`, for the data files that it matches, sorted. Data files are .json, .jsonl, .parquet, .arrow, .csv,
    .tsv and .txt, optionally with .gz, except for metadata of `datasets` and the Hub (dataset_infos.json and others).

    If the names of files or directories in a directory indicate several splits, `use` selects one: "train" the train
    split, or the files without a split if there is none; "eval" the validation split, or the test split if there is
    none. log: called with the files that are not read. Raises DataError for an entry without files.
    """
    files = [file for entry in entries for file in _files(Path(entry).expanduser(), use, log)]
    found: dict[Path, Path] = {}
    for file, place in zip(files, resolved(files), strict=True):
        found.setdefault(place, file)
    return list(found.values())


def resolved(files: Sequence[Path]) -> list[Path]:
    """`Path.resolve` of each file; faster than separate calls if many files share a directory."""
    parents: dict[Path, Path] = {}
    places = []
    for file in files:
        if file.is_symlink():
            places.append(file.resolve())
            continue
        parent = parents.get(file.parent)
        if parent is None:
            parent = parents[file.parent] = file.parent.resolve()
        places.append(parent / file.name)
    return places


def split_of(path: Path) -> str | None:
    """The split that the names in a path indicate: train, validation, test or None.

    path: relative to the dataset's directory. The file name takes precedence over its directories, and an inner
    directory over an outer one; within a name, the first word counts.
    """
    for name in reversed(path.parts):
        word = _SPLIT.search(name.lower())
        if word is not None:
            return str(word.lastgroup).removesuffix("_zh")
    return None


def _files(path: Path, use: Use, log: Log | None) -> list[Path]:
    if os.path.isdir(path):
        return _in_directory(path, use, log)
    if os.path.exists(path):
        return [path]
    if glob.has_magic(str(path)):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        files = sorted(match for match in matches if match.is_file() and _is_data(match))
        if files:
            return files
        found = "no data files" if matches else "nothing"
        raise DataError(f"{path}: the pattern matches {found} ({', '.join(_SUFFIXES)}){_near(path)}")
    hub = "; a dataset of the Hub is named hub:owner/name" if HUB_NAME.fullmatch(str(path)) else ""
    raise DataError(f"{path}: cannot read the data file: No such file or directory{_near(path) or hub}")


def _in_directory(directory: Path, use: Use, log: Log | None) -> list[Path]:
    if any((directory / name).is_file() for name in _OF_MODELS) or any(directory.glob("checkpoint-*")):
        raise DataError(f"{directory}: this is the directory of a model or a run, not of data files")
    data: list[Path] = []
    others: list[Path] = []
    for root, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for file in (Path(root, name) for name in names if not name.startswith(".")):
            (data if _is_data(file) else others).append(file)
    records = [file for file in data if _suffix(file) != ".txt"]
    if records:
        others += [file for file in data if _suffix(file) == ".txt"]
    elif not data:
        raise DataError(f"{directory}: the directory has no data files ({', '.join(_SUFFIXES)})")
    files = _of_split(directory, sorted(records or data), use, log)
    # Images and videos belong to the samples, so they are not reported.
    ignored = sorted(file for file in others if not _is_media(file))
    if ignored and log is not None:
        log(f"{directory}: ignores files that are not data files: {_names(directory, ignored)}")
    return files


def _of_split(directory: Path, files: list[Path], use: Use, log: Log | None) -> list[Path]:
    """The data files of a directory that belong to the split for `use`."""
    splits: dict[str | None, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file.relative_to(directory)), []).append(file)
    wanted: tuple[str | None, ...] = ("train", None) if use == "train" else ("validation", "test")
    if not splits.keys() - ({"train", None} if use == "train" else {None}):
        return files
    for split in wanted:
        if split in splits:
            rest = ", ".join(
                f"{name or 'of no split'} ({_names(directory, found)})"
                for name, found in sorted(splits.items(), key=lambda item: item[0] or "")
                if name != split
            )
            if rest and log is not None:
                chosen = f"the split {split}" if split else "the files of no split"
                log(f"{directory}: reads {chosen} ({_names(directory, splits[split])}); not read: {rest}")
            return splits[split]
    have = ", ".join(f"{name or 'no split'}: {_names(directory, found)}" for name, found in splits.items())
    asked = " or ".join(name for name in wanted if name)
    raise DataError(
        f"{directory}: the directory has no files of the split {asked} ({have}); list the files, or use a pattern such "
        f"as {directory / '**' / f'*{files[0].suffix}'}"
    )


def _is_data(path: Path) -> bool:
    name, suffix = path.name.lower(), _suffix(path)
    if name in _METADATA or (suffix == ".arrow" and name.startswith(_CACHE_PREFIX)):
        return False
    return suffix in _SUFFIXES


def _is_media(path: Path) -> bool:
    kind = mimetypes.guess_type(path.name)[0] or ""
    return kind.startswith(("image/", "video/", "audio/"))


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(_PACKED)).suffix


def _names(directory: Path, files: Sequence[Path]) -> str:
    return listed([str(file.relative_to(directory)) for file in files], _NAMED)


def _near(path: Path) -> str:
    """A hint with existing paths that are similar to a missing one; empty if there are none."""
    directory = path.parent
    while not directory.is_dir() and directory != directory.parent:
        path, directory = directory, directory.parent
    try:
        names = [entry.name for entry in directory.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=3)
    return f"; there is {', '.join(str(directory / name) for name in near)}" if near else ""
