"""Renames the keys of a source's records to those of a format: data.train: [{path, columns: {messages: dialogue}}]."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from erniekit.data.chat.conversation import SampleError
from erniekit.data.formats.fields.keys import REASONING
from erniekit.data.formats.fields.markers import MEDIA_KEYS
from erniekit.data.formats.fields.preference import KEYS as PAIR_KEYS
from erniekit.errors import DataError

# (key of a format, its name in the data)
Columns = tuple[tuple[str, str], ...]
_OPTIONAL = (
    *(
        "system",
        "history",
        "input",
        "tools",
        "functions",
        "label",
        "objects",
        "rejected_images",
        "rejected_videos",
    ),
    *MEDIA_KEYS,
    *REASONING,
)
_NEEDED = (
    *("messages", "conversations", "instruction", "output", "query", "response", "prompt", "completion"),
    *("question", "answer", "answers", "text", "text_info", "image_info", "video_info", "src", "tgt", "sort"),
    *PAIR_KEYS,
)


def read_columns(names: Mapping[str, str] | None, source: str) -> Columns:
    """The columns of a source's configuration.

    Raises DataError for a key that no format reads, and for a name that is given to two keys.
    """
    columns = tuple((names or {}).items())
    known = (*_NEEDED, *_OPTIONAL)
    for key, _ in columns:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise DataError(
                f'{source}: columns: no format reads the key "{key}" (the key of a format is on the left, the name '
                f"in the data on the right{hint})"
            )
    used = [name for _, name in columns]
    twice = next((name for name in used if used.count(name) > 1), None)
    if twice is not None:
        raise DataError(f'{source}: columns: "{twice}" is given to two keys; use each name once')
    return columns


def renamed(value: Any, columns: Columns, sample_id: str) -> Any:
    """A record with the keys of the formats. Raises SampleError if a required column is missing.

    A record may lack what formats do not need, such as images and tools.
    """
    if not columns or not isinstance(value, dict):
        return value
    names = {name: key for key, name in columns}
    missing = [name for key, name in columns if name not in value and key not in _OPTIONAL]
    if missing:
        detail = f'columns: the record has no "{missing[0]}"; it has {", ".join(map(repr, value))}'
        raise SampleError(sample_id, "bad record", detail[:400])
    # A configured column wins over a key of the same name.
    others = {key: inner for key, inner in value.items() if key not in names and key not in names.values()}
    return {**others, **{names[name]: inner for name, inner in value.items() if name in names}}
