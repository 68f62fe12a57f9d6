"""Texts to train a tokenizer on, from plain text files and data files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from erniekit.data.files.reader import MAX_TEXT_BYTES, BadLine, read_records
from erniekit.errors import DataError
from erniekit.local_files import open_regular

DATA_SUFFIXES = (".json", ".jsonl")
# Keys of names, tags and images (possibly base64) in data files, not of texts.
_NOT_TEXT = frozenset(
    {
        *("role", "type", "tag", "id", "url", "path", "bytes"),
        *("image", "images", "image_url", "image_info", "image_type"),
        *("video", "videos", "video_url", "video_info"),
    }
)


def read_texts(files: Sequence[Path]) -> list[str]:
    """Every text of the files: all string values of .json and .jsonl files, the whole content of any other.

    Values of the keys that name roles, tags and media are left out. Raises DataError ("file:line: ...") if a file
    cannot be read or is not valid.
    """
    texts: list[str] = []
    for file in files:
        if file.suffix.lower() in DATA_SUFFIXES:
            for record in read_records(file):
                if isinstance(record, BadLine):
                    raise record.error
                texts.extend(_strings(record.value))
        else:
            texts.append(_read(file))
    return texts


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if not value.startswith("data:"):
            yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in _NOT_TEXT:
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _read(file: Path) -> str:
    try:
        with open_regular(file) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_TEXT_BYTES:
                raise DataError(f"{file}: has more than {MAX_TEXT_BYTES >> 20} MiB, the limit for one text")
            # Not as text: a tokenizer must see the line endings of the file.
            return stream.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start + 1}): save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot read the tokenizer text: {error.strerror or error}") from error
