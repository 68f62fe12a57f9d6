"""Loads datasets of the Hugging Face Hub, and stores them as JSON lines."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from erniekit.data.files.arrow import plain
from erniekit.data.files.find import HUB_NAME, Log, Use, split_of
from erniekit.errors import DataError
from erniekit.local_files import replacing
from erniekit.paths import HUB, data_cache_dir

_ROWS = 256  # rows of a dataset in memory at a time


def local_entry(entry: str, cache_dir: str | None, use: Use = "train", log: Log | None = None) -> str:
    """The path for an entry of data.train or data.eval. For a dataset of the Hub, see `hub_file`.

    cache_dir: data.cache_dir of the configuration.
    """
    if not entry.startswith(HUB):
        return entry
    return str(hub_file(entry, data_cache_dir(cache_dir) / "hub", use, log))


def hub_file(entry: str, cache_dir: Path, use: Use = "train", log: Log | None = None) -> Path:
    """Download a dataset of the Hugging Face Hub, hub:owner/name[:split], as a file of JSON lines.

    It is loaded with `datasets` once. The file and the dataset's images are stored in cache_dir and used again. Without
    a split in the entry, `use` "train" selects the train split, and "eval" the validation split, or the test split if
    there is none. Raises DataError if `datasets` cannot load it, for example offline.
    """
    match = HUB_NAME.fullmatch(entry.removeprefix(HUB))
    if match is None:
        raise DataError(f"{entry}: a dataset of the Hub is named hub:owner/name or hub:owner/name:split")
    name, split = match["name"], match["split"] or use
    is_sought = match["split"] is None and use == "eval"
    # The digest distinguishes names with the same readable part, such as a/b--c and a--b/c.
    key = f"{name}:" if is_sought else f"{name}:{split}"
    digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
    readable = re.sub(r"[^\w.-]+", "--", f"{name}--{split}")
    target = cache_dir / f"{readable}-{digest}.jsonl"
    if not target.exists():
        if is_sought:
            split = _eval_split(entry, name)
        if match["split"] is None and log is not None:
            log(f"{entry}: reads the split {split}")
        try:
            with replacing(target) as file:
                for row in _load(entry, name, split):
                    record = plain(_with_files(row, target.with_suffix(".media")))
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"{entry}: cannot write {target}: {error.strerror or error}") from error
    return target


def _load(entry: str, name: str, split: str) -> Iterable[dict[str, Any]]:
    """The rows of a dataset as Python values."""
    with _hub(entry) as datasets:
        # As Arrow tables, in which images are the bytes of their files and are not decoded.
        dataset = datasets.load_dataset(name, split=split).with_format("arrow")
    for table in dataset.iter(batch_size=_ROWS):
        yield from table.to_pylist()


def _eval_split(entry: str, name: str) -> str:
    """The split of a dataset to evaluate on."""
    with _hub(entry) as datasets:
        splits: list[str] = datasets.get_dataset_split_names(name)
    for wanted in ("validation", "test"):
        for split in splits:
            if split_of(Path(split)) == wanted:
                return split
    raise DataError(
        f"{entry}: the dataset has no validation or test split ({', '.join(splits)}); name a split, as in "
        f"{entry}:train[:5%]"
    )


@contextmanager
def _hub(entry: str) -> Iterator[Any]:
    """The package `datasets`, imported on use. Its errors inside the block become DataErrors."""
    import datasets

    try:
        yield datasets
    except ConnectionError as error:
        detail = f"the Hub cannot be reached, and the dataset is not in its cache: {_first_line(error)}"
        raise DataError(f"{entry}: {detail}") from error
    except Exception as error:  # it raises many types of errors, also of its dependencies
        raise DataError(f"{entry}: datasets cannot load it: {_first_line(error)}") from error


def _with_files(value: Any, media: Path) -> Any:
    """Replace each {"bytes", "path"}, the form of images and videos in `datasets`, by the path of a stored file."""
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:
            return _file_of(value, media)
        return {key: _with_files(inner, media) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_files(inner, media) for inner in value]
    return value


def _file_of(value: dict[str, Any], media: Path) -> Any:
    data, path = value["bytes"], value["path"]
    if not isinstance(data, bytes):
        return path
    media.mkdir(exist_ok=True)
    suffix = Path(path).suffix if isinstance(path, str) else ""
    file = media / (hashlib.blake2b(data, digest_size=16).hexdigest() + suffix)
    if not file.exists():
        file.write_bytes(data)
    return f"{media.name}/{file.name}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
